"""Decide whether the operator may call an address that a user names. Pure."""

from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

PORTS = {"http": 80, "https": 443}


def is_allowed(url: str, prefixes: Iterable[str], namespace: str) -> bool:
    """Return whether the address begins with one that the administrator allows.

    Scheme, host and port must be the same, and a path must begin with whole segments of the allowed one.

    Args:
        url: The address.
        prefixes: Allowed addresses. ``{namespace}`` in one is the namespace of the user's object.
        namespace: That namespace.
    """
    requested = urlsplit(url)
    segments = requested.path.split("/")
    if "@" in requested.netloc or "%" in url or "\\" in url or "." in segments or ".." in segments:
        return False
    return any(_begins(requested, urlsplit(prefix.replace("{namespace}", namespace))) for prefix in prefixes)


def _begins(requested: SplitResult, allowed: SplitResult) -> bool:
    path = allowed.path.rstrip("/")
    is_below = requested.path == path or requested.path.startswith(f"{path}/")
    return _origin(requested) == _origin(allowed) and is_below


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    try:
        port = url.port
    except ValueError:  # above 65535
        port = -1
    return url.scheme, url.hostname, PORTS.get(url.scheme) if port is None else port
