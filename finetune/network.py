"""Whether a server answers, in seconds. Libraries try for minutes, and people wait."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5


def reach(url):
    """Connect to the server of a URL once, through the proxy that the environment names for it. Raises OSError where that fails."""
    address = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(address.hostname):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = address.port or {"https": 443, "http": 80}.get(address.scheme, 1080)  # else a SOCKS proxy
    socket.create_connection((address.hostname, port), timeout=SECONDS).close()
