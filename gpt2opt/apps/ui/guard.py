"""Who may ask the server: this machine's own page and programs, and pages that came through a proxy that was named."""

import re
from collections.abc import Sequence

from tornado.httputil import HTTPServerRequest


def own_names(hosts: Sequence[str]) -> str:
    """Return a pattern of the names that a request may call this server by; a foreign page can have any other resolved to this machine."""
    # The group and `$` stand here because tornado appends a missing `$`, which binds to the last alternative alone.
    return rf"(?:{'|'.join(map(re.escape, ('127.0.0.1', 'localhost', '[::1]', *hosts)))})\.?$"


def foreign(request: HTTPServerRequest, hosts: Sequence[str], by_anyone: bool = False) -> str | None:
    """Return the name that a request came under, or that of the page it came from, if it is foreign; None if both are known.

    by_anyone: whether any page may ask for this, under a name that is known.
    """
    if not re.match(own_names(hosts), request.host_name):
        return request.host_name
    origin = request.headers.get("Origin")
    if origin is None or by_anyone:
        return None
    asking = origin.lower().partition("://")[2]
    return None if asking == request.host.lower() or re.sub(r":\d+$", "", asking) in hosts else asking or origin
