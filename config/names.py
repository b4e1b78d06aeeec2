"""Every name that crosses a process: task names, queues, Redis keys, the shape of ids. No behaviour, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

# Task names. Explicit: Celery would otherwise take the module path, and a move of a file would break the wire.
CREATE_PEER = "peerlane.create_peer"
DELETE_PEER = "peerlane.delete_peer"
# For the observer: look, decide, and have the writer do it.
SWEEP = "peerlane.sweep"
RECONCILE = "peerlane.reconcile"
# For the writer, on the bulk queue: what the observer decided, and what an operator brings along.
REMOVE_PEERS = "peerlane.remove_peers"
MEND_PEERS = "peerlane.mend_peers"
IMPORT_PEERS = "peerlane.import_peers"
# For the writer, on the bulk queue: up to 64 wishes of a client's list.
CREATE_PEERS = "peerlane.create_peers"
DELETE_PEERS = "peerlane.delete_peers"

#: A gateway's name: it becomes part of queue names, Redis keys and task ids, so it holds none of their separators.
GATEWAY_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

#: The part of a request id after ``GATEWAY.``; a UUID normally, any token of ours in general.
REQUEST_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

#: The result key of a request whose caller listens on one channel for all of its requests: that of ``GATEWAY.REPLY``
#: for the ids ``GATEWAY.REPLY_N``, REPLY being 32 hexadecimal digits.
_REPLIED = re.compile(r"(.+\.[0-9a-f]{32})_[0-9]+")

#: Set of all registered gateways' names.
GATEWAYS_KEY = "peerlane:gateways"

#: Header of a message: when it was sent, in ms on Redis' clock. Writers read it; a request without it is not measured.
SENT_AT = "sent_at"
#: Header of a message: the caller's span, as W3C Trace Context has it. Absent where the caller traces nothing.
TRACEPARENT = "traceparent"

#: Prefix of Celery's result keys; the channel a result is published on has the same name.
RESULT_PREFIX = "celery-task-meta-"


def well_formed(members: Iterable[bytes]) -> list[str]:
    """The well-formed gateway names among the members of ``GATEWAYS_KEY``, sorted."""
    texts = (member.decode(errors="replace") for member in members)
    return sorted(name for name in texts if GATEWAY_NAME.fullmatch(name))


@lru_cache(maxsize=4096)
def lane_queue(gateway: str) -> str:
    """The interactive queue of a gateway's lane."""
    return f"gateway.{gateway}"


@lru_cache(maxsize=4096)
def bulk_queue(gateway: str) -> str:
    """The bulk queue (lists, sweeps) of a gateway's lane; consumed after the interactive one."""
    return f"gateway.{gateway}.bulk"


def observer_queue(gateway: str) -> str:
    """The queue of the gateway's observer: requests to sweep and to reconcile. It is not part of the lane."""
    return f"gateway.{gateway}.observer"


def request_id(gateway: str, token: str) -> str:
    """A request's id, which is its Celery task id. It begins with the gateway's name, by which ACLs limit results."""
    return f"{gateway}.{token}"


def is_request_id(gateway: str, value: object) -> bool:
    """Whether ``value`` is a well-formed request id of this gateway."""
    return isinstance(value, str) and request_ids(gateway).fullmatch(value) is not None


@lru_cache(maxsize=4096)
def request_ids(gateway: str) -> re.Pattern[str]:
    """The pattern of this gateway's request ids."""
    return re.compile(rf"{re.escape(gateway)}\.{REQUEST_TOKEN.pattern}")


def result_key(request: str) -> str:
    """Key (and channel) of a request's result: the commit record."""
    return RESULT_PREFIX + request


def result_channels(key: str) -> tuple[str, ...]:
    """The channels on which the record of a result key is published."""
    replied = _REPLIED.fullmatch(key)
    return (key,) if replied is None else (key, replied[1])


# One gateway's keys. The braces keep them in one cluster slot.


def peers_key(gateway: str) -> str:
    """Hash: public key → peer record (JSON)."""
    return f"peerlane:{{{gateway}}}:peers"


def addresses_key(gateway: str) -> str:
    """Hash: prefix → public key of the peer that holds it."""
    return f"peerlane:{{{gateway}}}:addresses"


def epoch_key(gateway: str) -> str:
    """Counter: grows with every start of a writer."""
    return f"peerlane:{{{gateway}}}:epoch"


def gateway_key(gateway: str) -> str:
    """Hash: facts of the gateway, written by its writer (public key, endpoint, pools, state, heartbeat, version)."""
    return f"peerlane:{{{gateway}}}:gateway"


def seen_key(gateway: str) -> str:
    """Hash: public key → the peer's activity, written by the observer (last seen, traffic totals)."""
    return f"peerlane:{{{gateway}}}:seen"


def alarms_key(gateway: str) -> str:
    """Hash: kind of alarm → what is wrong and since when (JSON); operators see and clear them."""
    return f"peerlane:{{{gateway}}}:alarms"


def observer_key(gateway: str) -> str:
    """Hash: facts of the observer (heartbeat, last reading, last sweep, last reconciliation)."""
    return f"peerlane:{{{gateway}}}:observer"


def metrics_key(gateway: str) -> str:
    """Hash: ``writer`` → what the gateway's writer has measured since it began (peerlane.tasks.values.metrics)."""
    return f"peerlane:{{{gateway}}}:metrics"


def slot_key(gateway: str, act: str, slot: int) -> str:
    """Key that claims a time slot of a sweep or reconciliation, so that several beats cause only one."""
    return f"peerlane:{{{gateway}}}:{act}:{slot}"


def slot_id(gateway: str, act: str, slot: int) -> str:
    """Request id of the scheduled ``act`` (sweep, reconcile) of a time slot: the same from every beat."""
    return request_id(gateway, f"{act}-{slot}")


def staged_key(gateway: str, token: str) -> str:
    """List of records that an import has brought and the writer has not taken yet."""
    return f"peerlane:{{{gateway}}}:staged:{token}"


def snapshot_key(gateway: str, token: str, part: str) -> str:
    """Hash: a copy of one of a gateway's hashes, which a backup reads or a restore will put in place."""
    return f"peerlane:{{{gateway}}}:snapshot:{token}:{part}"


def share_key(gateway: str, digest: str) -> str:
    """Sorted set: ids of waiting requests with one value of the fair label, scored by when each is forgotten."""
    return f"peerlane:{{{gateway}}}:share:{digest}"


def poison_key(gateway: str) -> str:
    """List of messages that were set aside, the latest first (peerlane.tasks.wire.set_aside)."""
    return f"peerlane:{{{gateway}}}:poison"


def wake_key(gateway: str, token: str) -> str:
    """List on which a process of the gateway waits besides its queues, so that it need not wait when it is to stop."""
    return f"peerlane:{{{gateway}}}:wake:{token}"


def deliveries_key(gateway: str, request: str) -> str:
    """Counter: how often a request was delivered again."""
    return f"peerlane:{{{gateway}}}:deliveries:{request}"


def node_name(gateway: str, host: str, *, observer: bool = False) -> str:
    """The Celery node name of a gateway's writer, or of its observer."""
    return f"{gateway}{'-observer' if observer else ''}@{host}"


def gateway_of_queue(queue: str) -> str:
    """The gateway whose lane or observer a queue belongs to."""
    return queue.split(".")[1] if queue.count(".") else queue


def unacked_key(gateway: str, part: str = "") -> str:
    """Celery's store of messages taken but not acknowledged, one per gateway so that none can read another's."""
    return f"peerlane:{{{gateway}}}:unacked{part}"


def lasting_keys(gateway: str) -> tuple[str, ...]:
    """All of a gateway's keys with a fixed name, except the epoch; its other keys expire."""
    parts = ("", "_index", "_mutex")
    return (
        *(lane_queue(gateway), bulk_queue(gateway), observer_queue(gateway)),
        *(gateway_key(gateway), peers_key(gateway), addresses_key(gateway), seen_key(gateway)),
        *(observer_key(gateway), alarms_key(gateway), metrics_key(gateway), poison_key(gateway)),
        *(unacked_key(gateway, of + part) for of in ("", "_observer") for part in parts),
    )


def writer_lock(device: str) -> str:
    """Abstract unix socket that the writer of ``device`` holds; its scope is the network namespace."""
    return f"\0peerlane/writer/{device}"


def observer_lock(device: str) -> str:
    """The same for the observer of ``device``."""
    return f"\0peerlane/observer/{device}"
