"""By which names the service may be called, and from which web pages: an allow list, with keys and without.

A browser sends along which name it was told (Host) and which page asks (Origin). Somebody else's page can let its own name mean
this machine (DNS rebinding), but it cannot call itself by a name of ours. See docs/decisions/033.
"""

import ipaddress
import os
import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.contract.errors import Refused
from serving.security.errors import AnotherPage, NotDirect, UnknownHost
from wbc_model.core.errors import WbcError

HOSTS: Final = "WBC_HOSTS"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
PAGES: Final = frozenset({"none", "same-origin"})  # Sec-Fetch-Site of what a person or our own page asks for
PORTS: Final = {"http": 80, "https": 443}
# What proxies and balancers add; `Via` is the one that RFC 9110 demands.
PROXY: Final = re.compile(
    r"(x-)?forwarded(-.*)?|via|x-real-ip|(x-|true-|x-cluster-)?client-ip|x-original-.*|x-(envoy|azure|arr|amzn|appengine)-.*"
    r"|(cf|fastly|fly|cdn)-.*|x-proxy.*|proxy-.*|x-varnish|x-host|x-scheme"
)
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")


def _plain(host: str) -> str:
    """A host as names are compared: lower case, without the root's dot and the brackets of IPv6."""
    return host.strip().lower().removesuffix(".").strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _place(text: str, scheme: str) -> tuple[str, int] | None:
    """Host and port of `name:port`; None where it is none."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or "@" in text:
        return None
    return _plain(parts.hostname), port or PORTS.get(scheme, 0)


class Hosts:
    """The names: those of loopback, the address that a connection came to, and those that the operator gives."""

    def __init__(self, named: Collection[str] = ()) -> None:
        """Raises WbcError for a name that is none; ports are not given, any of them is meant."""
        self._named = {_plain(name) for name in named}
        for name in sorted(self._named):
            if not _NAME.fullmatch(name) and not _is_address(name):
                raise WbcError(f"{HOSTS}: {name!r} is no host name; give names or IP addresses without a port, by commas")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Hosts":
        """Those that WBC_HOSTS names, separated by commas."""
        return cls([name for name in environment.get(HOSTS, "").split(",") if name.strip()])

    def refusal(self, scope: Scope, keyless: bool) -> Refused | None:
        """Why a request is not answered; None where it is. `keyless` is a service that asks for no key."""
        headers = Headers(scope=scope)
        host = _place(headers.get("host", ""), scope["scheme"])
        if host is None or not self._known(host[0], scope):
            return UnknownHost()
        if _from_elsewhere(headers, scope, host):
            return AnotherPage()
        # HTTP/1.0 is what nginx speaks where nobody told it otherwise; no browser and no client does any more.
        if keyless and (scope.get("http_version") == "1.0" or any(PROXY.fullmatch(name) for name in headers)):
            return NotDirect()
        return None

    def _known(self, name: str, scope: Scope) -> bool:
        own = scope.get("server") or ("",)
        return _is_loopback(name) or name in self._named or (_is_address(name) and name == _plain(str(own[0])))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _from_elsewhere(headers: Headers, scope: Scope, host: tuple[str, int]) -> bool:
    """Whether a browser sends it for a page that is not ours. To look is refused only to another site's page: it cannot read the
    answer anyway. To change something, also to one of another port."""
    site = headers.get("sec-fetch-site")
    if scope["method"] in SAFE_METHODS:
        return site == "cross-site" and scope["path"].startswith(("/v1", "/metrics"))
    if site is not None and site not in PAGES:
        return True
    page = headers.get("origin") or headers.get("referer")
    if page is None:
        return False
    try:
        parts = urlsplit(page)
    except ValueError:
        return True
    named = _place(parts.netloc, parts.scheme) if parts.scheme in PORTS else None
    # A proxy in front may end TLS: the port that is the usual one of the page's scheme is not written in either.
    asked = _place(headers.get("host", ""), parts.scheme)
    return named is None or named not in (host, asked)
