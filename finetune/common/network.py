"""Network access with short timeouts."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5


def reach(url: str) -> None:
    """Connect once to the server of a URL, through the proxy of the environment. Raises OSError."""
    address = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = address.port or {"https": 443, "http": 80}.get(address.scheme, 1080)  # else a SOCKS proxy
    socket.create_connection((address.hostname, port), timeout=SECONDS).close()


def hub_file(repo: str, name: str) -> str:
    """The path of a file of a Hub repository in the local cache, downloaded if needed. Raises the errors of
    huggingface_hub within seconds."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(repo, name)
    if isinstance(path, str):
        return path
    HfApi().model_info(repo, timeout=SECONDS)  # fails at once; a download would retry for half a minute
    return hf_hub_download(repo, name, etag_timeout=SECONDS)
