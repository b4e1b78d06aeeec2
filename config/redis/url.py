"""Converts the Redis URL of the settings for redis-py, kombu and people. It names a server or Sentinels."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from peerlane.config.hosts import is_host

if TYPE_CHECKING:
    from peerlane.config.settings import Settings

#: What a URL of Sentinels looks like.
SENTINEL_URL = "redis+sentinel://HOST:PORT,HOST:PORT,HOST:PORT/SERVICE/DB, or rediss+sentinel://…"

_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_PATH = re.compile(r"/(?P<service>[A-Za-z0-9._-]{1,64})(?:/(?P<db>[0-9]{1,4}))?/?")
_OPTIONS = {"sentinel_username", "sentinel_password"}
_PORT = 26379


def of_sentinels(url: str) -> bool:
    """Whether a URL names Sentinels."""
    return url.partition("://")[0] in _SCHEMES


def check_sentinel_url(url: str) -> None:
    """Check a URL of Sentinels. Raises ValueError, which quotes nothing of the URL: it may contain a password."""
    wrong = ValueError(f"expected {SENTINEL_URL} (percent-encode what is special in a password)")
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise wrong from None
    if "#" in url or not url.isprintable() or not _PATH.fullmatch(parts.path) or set(options) - _OPTIONS:
        raise wrong
    if any(len(values) != 1 or not values[0] for values in options.values()):
        raise wrong
    if "sentinel_username" in options and "sentinel_password" not in options:
        raise ValueError("sentinel_username needs sentinel_password")
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if not all(_address(text) for text in hosts):
        raise wrong
    if len(set(hosts)) < len(hosts):
        raise ValueError("a Sentinel is named twice in it")


def _address(text: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?", text)
    if match is None or not is_host(match["host"].strip("[]")):
        return None
    port = int(match["port"] or _PORT)
    return (match["host"].strip("[]"), port) if 0 < port < 65536 else None


class NamedSentinels(NamedTuple):
    """What a URL of Sentinels names. ``username`` and ``password`` are those for the Sentinels themselves."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    username: str | None
    password: str | None


def named_sentinels(url: str) -> NamedSentinels | None:
    """The Sentinels that a checked URL names; None if it names a server."""
    if not of_sentinels(url):
        return None
    parts = urlsplit(url)
    path = _PATH.fullmatch(parts.path)
    options = parse_qs(parts.query)
    hosts = tuple(address for text in parts.netloc.rpartition("@")[2].split(",") if (address := _address(text)))
    username, password = (options.get(name, [None])[0] for name in ("sentinel_username", "sentinel_password"))
    return NamedSentinels(hosts, path["service"] if path else "", username, password)


def server_url(settings: Settings) -> str:
    """A URL for redis-py. With Sentinels its host is the service's name, and they tell the address."""
    url = settings.redis_url.get_secret_value()
    if not of_sentinels(url):
        return url
    parts = urlsplit(url)
    path = _PATH.fullmatch(parts.path)
    user, at, _ = parts.netloc.rpartition("@")
    service, db = (path["service"], path["db"] or "0") if path else ("", "0")
    return f"{_SCHEMES[parts.scheme]}://{user}{at}{service}/{db}"


def database(settings: Settings) -> int:
    """The number of the database that the URL names."""
    parts = urlsplit(server_url(settings))
    named = parse_qs(parts.query).get("db", [parts.path.strip("/")])[0]
    return int(named) if named.isdigit() else 0


def celery_url(settings: Settings) -> str:
    """The Redis URL for kombu: a unix socket is ``redis+socket://`` with the database in ``virtual_host``."""
    url = server_url(settings)
    if not url.startswith("unix://"):
        return url
    return f"redis+socket{url.removeprefix('unix').replace('?db=', '?virtual_host=')}"


def redis_tls(settings: Settings) -> dict[str, Any]:
    """redis-py's TLS options; empty without rediss://. A server whose certificate does not verify is refused."""
    if not settings.redis_url.get_secret_value().startswith("rediss"):
        return {}
    files = {
        "ssl_ca_certs": settings.redis_ca,
        "ssl_certfile": settings.redis_client_cert,
        "ssl_keyfile": settings.redis_client_key,
    }
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        **{name: str(path) for name, path in files.items() if path is not None},
    }


def shown_url(url: str) -> str:
    """The URL for people, with secrets hidden."""
    parts = urlsplit(url)
    names, at, place = parts.netloc.rpartition("@")
    user, colon, _ = names.partition(":")
    shown = f"{unquote(user)}:(hidden)@" if colon else f"{unquote(user)}{at}"
    options = parse_qs(parts.query)
    kept = [f"db={options['db'][0]}"] if "db" in options else []
    kept += [f"sentinel_username={name}" for name in options.get("sentinel_username", [])]
    kept += ["sentinel_password=(hidden)"] if "sentinel_password" in options else []
    return f"{parts.scheme}://{shown}{place}{parts.path}{'?' + '&'.join(kept) if kept else ''}"
