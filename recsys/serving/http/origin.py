"""Who may ask a service that has no token: programs on its machine, and no page in a browser there.

A page cannot hide where it comes from. Its Host is the name that it was loaded from, also where an attacker's DNS has
let that name point to this machine (DNS rebinding), and browsers send Origin with whatever can change something, a
form's POST included (Fetch, section 3.2). A GET from another site's page has no Origin, but it changes nothing, and
the page cannot read the answer. No Content-Type is asked for: that would keep nobody out who is let in so, but
``curl -d``, which calls its JSON a form, and clients of the protocol, which send binary tensors with any type or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::\d*)?")


def is_loopback(host: str) -> bool:
    """localhost, or an address that nobody outside of this machine can reach."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def foreign(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Why a request may come from a web page of elsewhere; None if it does not.

    Args:
        headers: as in ASGI, names in lower case. Without a Host (HTTP/1.0) it is no browser.
    """
    own = b""
    for name, value in headers:
        if name == b"host":
            own = value.lower()
            found = _HOST.fullmatch(own.decode("latin-1"))
            if found is None or not is_loopback(found[1] or found[2] or ""):
                return "without a token, Host must be localhost or another name of this machine's loopback address"
    for name, value in headers:
        if name == b"origin" and value.lower().partition(b"://")[2] != own:
            return "without a token, no pages of other origins are answered"
    return None
