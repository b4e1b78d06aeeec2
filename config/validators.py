"""Checks settings that have a structure: prefixes, labels, the Redis URL. Pure.

A malformed value raises ValueError with a sentence for people that contains no secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from peerlane.config.hosts import is_host
from peerlane.config.redis.url import check_sentinel_url, of_sentinels

Network = IPv4Network | IPv6Network

_DATABASE = re.compile(r"/?|/[0-9]{1,4}")
_SCHEMES = ("redis://", "rediss://", "unix://")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")

REDIS_URL = "redis://HOST:PORT/DB, rediss://…, unix:///PATH or redis+sentinel://…"


def network(text: str) -> Network:
    """A prefix in the form that ``tasks.values.prefix`` reads too: no mask, zone or host bits. Raises ValueError."""
    address, slash, length = text.partition("/")
    try:
        # A zone is no part of a prefix, and ipaddress would take 255.255.0.0 for a length.
        parsed = ip_network(address) if "%" not in address else None
    except ValueError:
        parsed = None
    if parsed is None:
        raise ValueError(f"{text} is not an IPv4 or IPv6 prefix such as 10.8.0.7/32 or fd00::7/128")
    if slash and not (_LENGTH.fullmatch(length) and int(length) <= parsed.max_prefixlen):
        raise ValueError(f"{text} has a prefix length that is not a number from 0 to {parsed.max_prefixlen}")
    if not slash:
        return parsed
    wide = ip_network(text, strict=False)
    if wide.network_address != parsed.network_address:
        raise ValueError(f"{text} has host bits set; did you mean {wide}?")
    return wide


def check_areas(texts: Sequence[str], others: Sequence[str] = ()) -> None:
    """Check that no prefix overlaps another or one of ``others``, which were checked before. Raises ValueError."""
    areas = [network(text) for text in texts]
    before = [network(text) for text in others]
    for area, other in [*combinations(areas, 2), *((area, other) for area in areas for other in before)]:
        if area.version == other.version and area.overlaps(other):  # type: ignore[arg-type] - the same family
            raise ValueError(f"{area} and {other} overlap")


def check_pools(texts: Sequence[str]) -> None:
    """Check prefixes from which peers get addresses. Raises ValueError."""
    check_areas(texts)
    for pool in map(network, texts):
        if pool.max_prefixlen - pool.prefixlen < 2:
            raise ValueError(f"{pool} has no room for peers")
        if pool.prefixlen == 0:
            raise ValueError(f"{pool} is every address there is: its route would take the host's own traffic")


def check_labels(texts: Sequence[str]) -> None:
    """Check a gateway's labels: each ``key=value``, no key twice. Raises ValueError."""
    keys = [text.partition("=")[0].strip() for text in texts]
    if len(set(keys)) < len(keys) or not all(keys) or not all("=" in text for text in texts):
        raise ValueError("labels are key=value, each key once")
    if not all(text.isprintable() and len(text) <= 512 for text in texts):
        raise ValueError("a label is longer than 512 characters, or not printable")


def check_redis_url(text: str) -> None:
    """Check that redis-py, kombu and Celery read a URL as the same server. Raises ValueError."""
    if of_sentinels(text):
        check_sentinel_url(text)
        return
    wrong = ValueError(f"expected {REDIS_URL}")
    try:
        url = urlsplit(text)
    except ValueError:  # its text quotes the password
        raise wrong from None
    if any(name.startswith("ssl") for name, _ in parse_qsl(url.query, keep_blank_values=True)):
        raise ValueError("TLS is set by PEERLANE_REDIS_CA, _CLIENT_CERT and _CLIENT_KEY, not in the URL")
    # As it stands: redis-py takes no other spelling of a scheme, and what begins with rediss:// is TLS everywhere.
    known = text.startswith(_SCHEMES)
    if not known or not text.isprintable() or "#" in text or not (_is_tcp(url) or _is_socket(url)):
        # Nothing of it is quoted: a password with a /, ? or # that is not percent-encoded may stand anywhere.
        raise wrong
    if url.query and url.scheme != "unix":
        # They would reach redis-py and end kombu; what they would change is set already, with a reason.
        raise ValueError(f"expected {REDIS_URL}, without options (percent-encode a ? in a password)")
    if url.query and not re.fullmatch(r"db=[0-9]{1,4}", url.query):
        raise ValueError("the only option of a unix:///PATH is ?db=NUMBER")


def _is_tcp(url: SplitResult) -> bool:
    try:
        port = url.port
    except ValueError:  # its text quotes what stands in place of the port: a part of the password, maybe
        return False
    tcp = url.scheme in ("redis", "rediss") and is_host(url.hostname or "")
    return tcp and port != 0 and bool(_DATABASE.fullmatch(url.path))


def _is_socket(url: SplitResult) -> bool:
    place = url.netloc.rpartition("@")[2]
    return url.scheme == "unix" and not place and url.path.startswith("/") and len(url.path) > 1


def nearest(name: str, known: Iterable[str], *, variable: bool = False) -> str:
    """A suggestion for a misspelled setting. In a file, too, the name may be written as a variable's."""
    near = get_close_matches(name.lower().removeprefix("peerlane_"), known, n=1, cutoff=0.7)
    if not near:
        return " (misspelled?)"
    return f" (did you mean {f'PEERLANE_{near[0].upper()}' if variable else near[0]}?)"


def quoted(name: str) -> str:
    """A foreign name, quoted in one line."""
    return name if name.isprintable() and len(name) <= 100 else f"{name[:100]!a}"


def is_file(path: Path) -> bool:
    """Whether there is a regular file of this name that this process can see."""
    try:
        return path.is_file()
    except OSError:  # the name is too long, or a directory on the way is closed to us
        return False
