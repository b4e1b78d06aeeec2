"""Recognises environment variables that container engines set: Docker links, Kubernetes services.

If a service is named ``peerlane-redis``, its variables begin with the prefix of our settings and are no settings:
``PEERLANE_REDIS_PORT_6379_TCP_ADDR``. The name does not suffice: ``PEERLANE_LISTEN_PORT`` is a setting and, with the
value ``tcp://10.0.0.7:6379``, a link. A variable is a link only if its value, too, is one that an engine would write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

_URL = re.compile(r"(tcp|udp|sctp)://(\[[0-9a-fA-F:.]+\]|[0-9.]+):\d{1,5}")
_PORT = re.compile(r"\d{1,5}")
#: What comes after the name of a link or a service, and what stands in it.
_SHAPES = (
    (re.compile(r"(?:^|_)PORT$"), _URL),
    (re.compile(r"(?:^|_)PORT_\d+_(?:TCP|UDP|SCTP)(?:_START|_END)?$"), _URL),
    (re.compile(r"(?:^|_)PORT_\d+_(?:TCP|UDP|SCTP)_PORT(?:_START|_END)?$"), _PORT),
    (re.compile(r"(?:^|_)PORT_\d+_(?:TCP|UDP|SCTP)_PROTO$"), re.compile(r"tcp|udp|sctp")),
    (re.compile(r"(?:^|_)SERVICE_PORT(?:_[A-Z0-9_]+)?$"), _PORT),
    # Docker names both ends: /web/redis.
    (re.compile(r"(?:^|_)NAME$"), re.compile(r"/[^/\s]+/[^/\s]+")),
)
_ADDRESS = re.compile(r"(?:^|_)(?:PORT_\d+_(?:TCP|UDP|SCTP)_ADDR|SERVICE_HOST)$")
#: The environment of the container that is linked to: any name, any value.
_INNER = re.compile(r"(?P<link>|.+?_)ENV_.+")


def of_an_engine(name: str, environ: Mapping[str, str], prefix: str) -> bool:
    """Whether a variable whose name begins with ``prefix`` was set by a container engine."""
    if not name.startswith(prefix):
        return False
    rest, value = name.removeprefix(prefix), environ[name]
    if _ADDRESS.search(rest):
        return _is_address(value)
    if any(shape.search(rest) and form.fullmatch(value) for shape, form in _SHAPES):
        return True
    inner = _INNER.fullmatch(rest)
    # Docker tells a link's name wherever it tells its environment.
    link = f"{prefix}{inner['link']}NAME" if inner else ""
    return link in environ and of_an_engine(link, environ, prefix)


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True
