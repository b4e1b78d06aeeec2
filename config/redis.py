"""Connections to Redis, with the same time limits for every role, and what redis-py's errors mean to an operator."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    ReadOnlyError,
)
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from peerlane.config.settings import Settings, redis_tls


def connect(settings: Settings, *, timeout: float = 2.0) -> Redis:
    """A client with its own pool. ``timeout`` bounds every answer, in seconds; nothing is retried unseen."""
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - untyped keyword arguments in redis-py
        settings.redis_url.get_secret_value(),
        socket_timeout=timeout,
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        **redis_tls(settings),
    )


def reason(error: BaseException) -> str:
    """Why Redis could not be used, in words for an operator; never what was sent to it, nor where."""
    if isinstance(error, AuthenticationError):
        return "it knows no such user, or another password"
    if isinstance(error, NoPermissionError):
        # FunctionsMissing speaks for itself; Redis' own sentence names the command or says that it was a key.
        return str(error) if type(error) is not NoPermissionError else "this user may not do that: see `peerlane acl`"
    for tell in (_of_tls, _of_others):
        for one in _chain(error):
            if (found := tell(one)) is not None:
                return found
    return type(error).__name__


def _of_tls(one: BaseException) -> str | None:
    if isinstance(one, ssl.SSLCertVerificationError):
        return f"its TLS certificate is refused: {one.verify_message}"
    if isinstance(one, ssl.SSLEOFError):
        return "it closed the TLS connection: does it ask for a client's certificate (PEERLANE_REDIS_CLIENT_CERT)?"
    if isinstance(one, TimeoutError) and "handshake" in str(one):
        return "no TLS handshake came about in time: does it speak TLS on this port?"
    if isinstance(one, ConnectionResetError):
        return "it closed the connection (if it expects TLS, the URL begins with rediss://)"
    if isinstance(one, ssl.SSLError):
        return f"no TLS connection came about: {_ALERTS.get(str(one.reason), str(one.reason))}"
    return None


def _of_others(one: BaseException) -> str | None:
    return next((sentence for kind, sentence in _WORDS if isinstance(one, kind)), None)


_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "nobody knows its host name"),
    (ConnectionRefusedError, "nobody listens there"),
    (FileNotFoundError, "there is no such socket"),
    (PermissionError, "this user may not open its socket"),
    (RedisTimeout, "it does not answer in time"),
    (BusyLoadingError, "it is still loading its data"),
    (ReadOnlyError, "it is a replica, and takes no writes"),
    (ClusterError, "it runs as a cluster: use one server per fleet"),
)

_ALERTS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port",
    "RECORD_LAYER_FAILURE": "it does not speak TLS on this port",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a client's certificate: PEERLANE_REDIS_CLIENT_CERT",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know who signed our certificate",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came of."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
