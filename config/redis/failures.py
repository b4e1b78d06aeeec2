"""Words redis-py's errors for operators."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterError,
    ExecAbortError,
    InvalidResponse,
    MasterDownError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

from peerlane.config.redis.sentinels import NoPrimary


def failure(error: BaseException) -> str:
    """What failed and why, as the beginning of a sentence. Calls Redis unreachable only if it was not reached."""
    causes = list(_chain(error))
    if any(isinstance(cause, MaxConnectionsError) or "No connection available" in str(cause) for cause in causes):
        return "this process has no connection to Redis free"
    if any(map(_is_reply, causes)):
        return f"Redis refuses ({reason(error)})"
    if all(isinstance(cause, RedisError) and not isinstance(cause, _UNREACHED) for cause in causes):
        return f"Redis cannot be used ({reason(error)})"
    return f"Redis could not be reached ({reason(error)})"


def reason(error: BaseException) -> str:
    """Why Redis could not be used, in words for an operator; never what was sent to it, nor where."""
    if isinstance(error, AuthenticationError):
        return "it knows no such user, or another password"
    if isinstance(error, NoPermissionError):
        # FunctionsMissing speaks for itself; Redis' own sentence names the command or says that it was a key.
        return str(error) if type(error) is not NoPermissionError else "this user may not do that: see `peerlane acl`"
    for explain in (_of_tls, _of_class, _of_reply):
        for cause in _chain(error):
            if (sentence := explain(cause)) is not None:
                return sentence
    return type(error).__name__


def _is_reply(error: BaseException) -> bool:
    """Whether Redis was reached, and answered with this error."""
    return isinstance(error, _REPLY_CLASSES) or _MAXCLIENTS in str(error)


def _of_tls(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "it closed the TLS connection: does it ask for a client's certificate (PEERLANE_REDIS_CLIENT_CERT)?"
    if isinstance(error, TimeoutError) and "handshake" in str(error):
        return "no TLS handshake came about in time: does it speak TLS on this port?"
    if isinstance(error, ConnectionResetError):
        return "it closed the connection (if it expects TLS, the URL begins with rediss://)"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection came about: {_ALERTS.get(str(error.reason), str(error.reason))}"
    return None


def _of_class(error: BaseException) -> str | None:
    if isinstance(error, NoPrimary):
        return f"{error}; {_of_sentinels(error)}"
    return next((sentence for kind, sentence in _CLASSES if isinstance(error, kind)), None)


def _of_sentinels(error: NoPrimary) -> str:
    """What the Sentinels answered, each answer once."""
    asked: dict[str, list[str]] = {}
    for address, answer in error.answers.items():
        if isinstance(answer, NoPermissionError):
            sentence = "its user may not call SENTINEL MASTERS"
        else:
            sentence = answer if isinstance(answer, str) else reason(answer)
        asked.setdefault(sentence, []).append(address)
    return "; ".join(f"{', '.join(addresses)}: {sentence}" for sentence, addresses in asked.items())


def _of_reply(error: BaseException) -> str | None:
    """The sentence for the first word of Redis' reply. The rest is not shown: it may quote what was sent."""
    if not isinstance(error, ResponseError | RedisConnectionError):
        return None
    text = str(error).rpartition(_OF_PIPELINE)[2]
    for beginning, sentence in _REPLIES.items():
        if text.startswith(beginning):
            return sentence
    word = re.match(r"[A-Z]{3,32}(?= )", text) if isinstance(error, ResponseError) else None
    return f"it answers {word[0]}" if word else None


#: How redis-py begins the text of an error that came of one command in a pipeline.
_OF_PIPELINE = " of pipeline caused error: "
_MAXCLIENTS = "max number of clients reached"
_REPLY_CLASSES = (
    ResponseError,
    ClusterError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
)
#: redis-py's own errors for a server that was not reached, or is no Redis.
_UNREACHED = (RedisConnectionError, RedisTimeout, InvalidResponse)

_CLUSTER = "it runs as a cluster: use one server per fleet"
#: The first that fits is used, so a subclass stands before its parent.
_CLASSES: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "nobody knows its host name"),
    (ConnectionRefusedError, "nobody listens there"),
    (FileNotFoundError, "there is no such socket"),
    (PermissionError, "this user may not open its socket"),
    (BrokenPipeError, "it closed the connection: are there as many clients as it may serve (maxclients)?"),
    (TimeoutError, "it does not answer in time"),
    (RedisTimeout, "it does not answer in time"),
    (BusyLoadingError, "it is still loading its data"),
    (ReadOnlyError, "READONLY: it is a replica, and takes no writes; PEERLANE_REDIS_URL should name the primary"),
    (MasterDownError, "MASTERDOWN: it is a replica that has lost its primary"),
    (OutOfMemoryError, "OOM: its memory is full (maxmemory), and it takes no writes"),
    (ExecAbortError, "EXECABORT: it discarded the transaction"),
    (AuthenticationError, "it knows no such user, or another password"),
    (AuthorizationError, "this user may not do that: see `peerlane acl`"),
    (AuthenticationWrongNumberOfArgsError, "it takes no user's name: it is older than Redis 6"),
    (NoPermissionError, "this user may not do that: see `peerlane acl`"),
    (InvalidResponse, "what answers there does not speak Redis' protocol"),
    (ClusterCrossSlotError, _CLUSTER),
    (TryAgainError, _CLUSTER),
    (AskError, _CLUSTER),
    (ClusterError, _CLUSTER),
)

_REPLIES = {
    "MISCONF": "MISCONF: it cannot save its data (is its disk full?), and takes no writes until it can",
    "NOREPLICAS": "NOREPLICAS: fewer replicas follow it than min-replicas-to-write asks for, so it takes no writes",
    "BUSY ": "BUSY: a script occupies it; an administrator can end it with SCRIPT KILL or FUNCTION KILL",
    "DENIED": "DENIED: in protected mode it serves its own host alone; give its users passwords",
    "UNBLOCKED": "UNBLOCKED: it became a replica meanwhile",
    "WRONGTYPE": "WRONGTYPE: a key of Peerlane's holds what somebody else has put there",
    "Connection closed by server": "it closed the connection",
    _MAXCLIENTS: "it serves as many clients as it may: raise maxclients",
    "unknown command": "it does not know a command of Peerlane's: is it older than Redis 7, or has it renamed one?",
}

_ALERTS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port",
    "RECORD_LAYER_FAILURE": "it does not speak TLS on this port",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a client's certificate: PEERLANE_REDIS_CLIENT_CERT",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know who signed our certificate",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
