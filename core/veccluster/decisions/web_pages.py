"""Decide whether a request may have come from a web page that has no business here.

A browser lets every page send requests to every address that its user can reach, a database on the user's own machine
included. What gives such a page away are headers that it cannot choose: `Origin`, `Sec-Fetch-Site`, and, where the
page's own name was made to lead to this machine (DNS rebinding), `Host`. Other programs send none of the first two.
"""

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

READING = frozenset({"GET", "HEAD"})
"""Methods that change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request says of where it comes from; None is a header that is not there."""

    method: str
    host: str | None = None
    origin: str | None = None
    site: str | None = None
    """`Sec-Fetch-Site`."""
    mode: str | None = None
    """`Sec-Fetch-Mode`."""


def refusal(asked: Asked, *, origins: Collection[str], hosts: Collection[str] | None) -> str | None:
    """Why the request is refused, if it is.

    `origins` are those of the pages that may ask; `hosts` the names by which this node may be asked, or None where any
    name will do.
    """
    if hosts is not None and asked.host is not None and not _is_known(asked.host, hosts):
        return (
            f"Host: this node listens on the loopback and is not known as {asked.host!r}; ask it as localhost, or add "
            "the name to tuning.allowedHosts"
        )
    if asked.origin is not None:
        if asked.origin in origins or _is_of(asked.origin, asked.host):
            return None
        return (
            f"Origin: requests of web pages of {asked.origin!r} are not allowed; tuning.cors.origins lists the origins "
            "that are"
        )
    follows_a_link = asked.method in READING and asked.mode == "navigate"
    if asked.site in ("cross-site", "same-site") and not follows_a_link:
        return f"Sec-Fetch-Site: a web page of another origin ({asked.site}) has sent this, and does not say of which"
    return None


def allows(origin: str | None, *, origins: Collection[str]) -> bool:
    """Whether the pages of an origin may read answers."""
    return origin is not None and origin in origins


def _is_of(origin: str, host: str | None) -> bool:
    """Whether a page was served by the address that it asks now."""
    return host is not None and origin.partition("://")[2] == host.lower()


def _is_known(host: str, hosts: Collection[str]) -> bool:
    name = _without_port(host.strip().lower()).rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in hosts:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host
