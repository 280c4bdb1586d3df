"""Servers that answer in seconds or count as out of reach. Libraries try for minutes, and people wait."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5


def reach(url):
    """Connect to the server of a URL once, through the proxy that the environment names for it. Raises OSError where
    that fails."""
    address = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(address.hostname):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = address.port or {"https": 443, "http": 80}.get(address.scheme, 1080)  # else a SOCKS proxy
    socket.create_connection((address.hostname, port), timeout=SECONDS).close()


def hub_file(repo, name):
    """The path of a file of a Hub repository: in the local cache, or downloaded to it. Raises what huggingface_hub
    does, within seconds."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(repo, name)
    if isinstance(path, str):
        return path
    HfApi().model_info(repo, timeout=SECONDS)  # a download would try for half a minute to reach what cannot be reached
    return hf_hub_download(repo, name, etag_timeout=SECONDS)
