"""Makes Redis users with the least rights for each part of Peerlane. Pure.

A user's rights are selectors (Redis 7): each allows some commands on some keys and channels. Only the administrator may
send Lua, read or change the server's settings, or list keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from peerlane.config import names

Role = Literal["writer", "observer", "api", "operator", "restorer", "beat", "flower", "exporter", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
Form = Literal["aclfile", "setuser"]

#: Where a password belongs. Redis refuses to load it as it stands.
PLACEHOLDER = "#CHANGE-ME"

_PASSWORD = re.compile(r"[A-Za-z0-9_-]{16,}")

#: The commands that every connection of redis-py and kombu sends, for every role.
_CONNECTION = ("hello", "auth", "ping", "select", "client|setinfo", "multi", "exec", "discard", "unwatch", "time")


@dataclass(frozen=True, slots=True)
class Selector:
    """Allows some commands on some keys and channels. ``R:`` or ``W:`` before a key is for reading or writing."""

    commands: tuple[str, ...]
    keys: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def rules(self) -> str:
        """The rules in Redis' syntax."""
        keys = (f"%{key[0]}~{key[2:]}" if key[:2] in ("R:", "W:") else f"~{key}" for key in self.keys)
        channels = (f"&{channel}" for channel in self.channels)
        return " ".join([*(f"+{command}" for command in self.commands), *keys, *channels])


@dataclass(frozen=True, slots=True)
class User:
    """One Redis user."""

    name: str
    role: Role
    #: The first holds for commands without keys.
    selectors: tuple[Selector, ...]

    def line(self, form: Form = "aclfile", password: str | None = None, *, oldest: bool = False) -> str:
        """The user's line of an aclfile, or the ACL SETUSER command that replaces all of its earlier rights.

        ``oldest`` is for Redis 7.0, which loads no rule that names a command it does not know.

        Raises:
            ValueError: a password that is short, or could be taken for more rules.
        """
        if password is not None and not _PASSWORD.fullmatch(password):
            raise ValueError("a password is at least 16 letters, digits, - and _")
        first, *others = self.selectors
        rules = [first.rules(), *(f"({selector.rules()})" for selector in others)]
        if oldest:
            rules[0] = rules[0].replace("+client|setinfo ", "")
        start = f"user {self.name}" if form == "aclfile" else f"ACL SETUSER {self.name} reset"
        return " ".join([start, "on", PLACEHOLDER if password is None else f">{password}", *rules])


def users(gateways: Sequence[str], roles: Sequence[Role] = ROLES, *, database: int = 0) -> list[User]:
    """The users for ``gateways``: a writer and an observer for each; one API, operator and restorer for all of them.

    Beat, Flower, the exporter and the administrator are the fleet's. ``database`` is the number in the Redis URL.
    """
    events = f"/{database}.celeryev/*"
    suffix = f"-{gateways[0]}" if len(gateways) == 1 else ""
    chosen_users: list[User] = []
    for role in roles:
        match role:
            case "writer":
                chosen_users += [User(f"writer-{name}", role, _writer(name, events)) for name in gateways]
            case "observer":
                chosen_users += [User(f"observer-{name}", role, _observer(name, events)) for name in gateways]
            case "api":
                chosen_users.append(User(f"api{suffix}", role, _api(gateways)))
            case "operator":
                chosen_users.append(User(f"operator{suffix}", role, _operator(gateways)))
            case "restorer":
                chosen_users.append(User(f"restorer{suffix}", role, _restorer(gateways)))
            case "flower":
                chosen_users.append(User("flower", role, _flower(events)))
            case "beat" | "exporter":
                chosen_users.append(User(role, role, _beat() if role == "beat" else _exporter()))
            case "admin":
                chosen_users.append(User("admin", role, (Selector(("@all",), ("*",), ("*",)),)))
    return chosen_users


def default_user_off(form: Form = "aclfile") -> str:
    """The line that disables the default user, so that a client without a name may do nothing."""
    return "user default off" if form == "aclfile" else "ACL SETUSER default off"


def _consumer(gateway: str, queues: tuple[str, ...], unacked: str) -> tuple[Selector, ...]:
    """The rights that kombu needs to consume: take, keep until acknowledged, give back, and end its own wait."""
    wake = names.wake_key(gateway, "*")
    return (
        Selector(("brpop", "llen", "lpush", "rpush"), (*queues, wake)),
        Selector(("expire",), (wake,)),
        Selector(("zadd", "zrem", "zrange", "hset", "hget", "hdel", "watch"), (unacked, f"{unacked}_index")),
    )


def _sets_aside(gateway: str) -> tuple[Selector, ...]:
    """The rights to set messages aside."""
    return (
        Selector(("incrby", "expire"), (names.deliveries_key(gateway, "*"),)),
        Selector(("lpush", "ltrim"), (f"W:{names.poison_key(gateway)}",)),
    )


def _writer(gateway: str, events: str) -> tuple[Selector, ...]:
    results = names.result_key(names.request_id(gateway, "*"))
    state = f"peerlane:{{{gateway}}}:*"
    queues = names.lane_queue(gateway), names.bulk_queue(gateway)
    return (
        Selector((*_CONNECTION, "info", "publish"), channels=(results, events)),
        *_consumer(gateway, queues, names.unacked_key(gateway)),
        # What waits is taken together, in a late lane the newest first; the heartbeat tells for how long it waits.
        Selector(("rpop", "lrange", "lrem", "lindex"), queues),
        *_sets_aside(gateway),
        # The functions touch all of these in one step; each of their commands is checked as well.
        Selector(("fcall",), (state, results, *queues)),
        Selector(("hset", "hget", "hmget", "hgetall", "hdel", "hexists", "hlen", "hscan"), (state,)),
        Selector(("get", "set"), (results,)),
        Selector(("get", "incrby"), (names.epoch_key(gateway),)),
        Selector(("lrange",), (f"R:{names.staged_key(gateway, '*')}",)),
        Selector(("zrem",), (names.share_key(gateway, "*"),)),
        Selector(("sadd",), (f"W:{names.GATEWAYS_KEY}",)),
    )


def _observer(gateway: str, events: str) -> tuple[Selector, ...]:
    results = names.result_key(names.request_id(gateway, "*"))
    own = (names.seen_key(gateway), names.alarms_key(gateway), names.observer_key(gateway))
    slots = tuple(f"W:peerlane:{{{gateway}}}:{act}:*" for act in ("sweep", "reconcile"))
    return (
        Selector((*_CONNECTION, "publish", "subscribe", "unsubscribe"), channels=(results, events)),
        *_consumer(gateway, (names.observer_queue(gateway),), names.unacked_key(gateway, "_observer")),
        *_sets_aside(gateway),
        Selector(("hset", "hget", "hmget", "hgetall", "hdel", "hscan"), own),
        Selector(("hget", "hmget", "hscan"), (f"R:{names.peers_key(gateway)}",)),
        Selector(("hmget", "hscan"), (f"R:{names.addresses_key(gateway)}",)),
        Selector(("hget", "hmget", "hgetall"), (f"R:{names.gateway_key(gateway)}",)),
        Selector(("set",), slots),
        Selector(("get", "set", "exists"), (results,)),
        # What it asks of the writer.
        Selector(("lpush", "llen"), (f"W:{names.bulk_queue(gateway)}",)),
        Selector(("llen",), (names.lane_queue(gateway),)),
    )


def _api(gateways: Sequence[str]) -> tuple[Selector, ...]:
    results = tuple(names.result_key(names.request_id(gateway, "*")) for gateway in gateways)
    lanes = tuple(f"W:{queue(name)}" for name in gateways for queue in (names.lane_queue, names.bulk_queue))
    shares = tuple(names.share_key(gateway, "*") for gateway in gateways)
    return (
        Selector((*_CONNECTION, "publish", "subscribe", "unsubscribe"), channels=results),
        Selector(("lpush", "llen"), lanes),
        Selector(("get", "mget", "set"), results),  # set: to cancel
        Selector(("hget", "hexists", "hscan"), tuple(f"R:{names.peers_key(name)}" for name in gateways)),
        Selector(("hget", "hmget"), tuple(f"R:{names.seen_key(name)}" for name in gateways)),
        Selector(("zadd", "zcard", "zrem", "zremrangebyscore", "expire"), shares),
        # Gateways' facts hold no secrets, and lists show all gateways.
        Selector(("hgetall",), (f"R:{names.gateway_key('*')}",)),
        Selector(("llen",), ("gateway.*",)),
        Selector(("smembers",), (f"R:{names.GATEWAYS_KEY}",)),
    )


def _operator(gateways: Sequence[str]) -> tuple[Selector, ...]:
    """The rights of a person at the command line: those of an API host, and to drain, sweep, import and back up."""

    def key_of_each(key: str) -> tuple[str, ...]:
        return tuple(key.replace("NAME", name) for name in gateways)

    first, *others = _api(gateways)
    return (
        Selector((*first.commands, "info"), channels=first.channels),
        *others,
        Selector(("lpush", "llen"), key_of_each(f"W:{names.observer_queue('NAME')}")),
        *_backs_up(gateways),
        *_forgets(gateways),
        Selector(("watch", "hset", "hmget", "exists"), key_of_each(names.gateway_key("NAME"))),
        Selector(("rpush", "expire", "del"), key_of_each(f"W:{names.staged_key('NAME', '*')}")),
        Selector(("hscan",), key_of_each(f"R:{names.addresses_key('NAME')}")),
        Selector(("hget", "hmget", "hgetall", "hscan"), key_of_each(f"R:{names.seen_key('NAME')}")),
        Selector(("hget", "hmget", "hgetall"), key_of_each(f"R:{names.observer_key('NAME')}")),
        Selector(("hgetall", "hdel"), key_of_each(names.alarms_key("NAME"))),
        Selector(("lrange", "lrem", "llen", "del"), key_of_each(names.poison_key("NAME"))),
    )


def _backs_up(gateways: Sequence[str]) -> tuple[Selector, ...]:
    """The rights to copy a gateway's hashes in one step and to read the copies. The hashes cannot be changed."""
    hashes = (names.peers_key, names.addresses_key, names.seen_key)
    read = tuple(f"R:{key(name)}" for name in gateways for key in hashes)
    copies = tuple(names.snapshot_key(name, "*", "*") for name in gateways)
    return (
        # Of two keys in one command, each may have its own rights.
        Selector(("copy",), (*read, *copies)),
        Selector(("expire", "hlen", "hscan", "unlink"), copies),
        Selector(("get",), tuple(f"R:{names.epoch_key(name)}" for name in gateways)),
    )


def _forgets(gateways: Sequence[str]) -> tuple[Selector, ...]:
    """The rights to remove a whole gateway, without reading or changing a peer or a request."""
    whole = tuple(f"W:{key}" for name in gateways for key in names.lasting_keys(name))
    epochs = tuple(names.epoch_key(name) for name in gateways)
    return (
        Selector(("watch", "hlen", "unlink"), whole),
        # Not INCRBY, which could also go back, and so let a writer in that was replaced.
        Selector(("incr", "watch"), epochs),
        Selector(("srem",), (f"W:{names.GATEWAYS_KEY}",)),
    )


def _restorer(gateways: Sequence[str]) -> tuple[Selector, ...]:
    """The rights to replace a gateway's whole state by a backup, without reading or changing a single peer.

    Apart from the operator: who can do this can fence a writer and give a gateway any peers.
    """
    hashes = (names.peers_key, names.addresses_key, names.seen_key)
    live = tuple(f"W:{key(name)}" for name in gateways for key in hashes)
    staged = tuple(names.snapshot_key(name, "*", "*") for name in gateways)
    epochs = tuple(names.epoch_key(name) for name in gateways)
    facts = tuple(names.gateway_key(name) for name in gateways)
    lanes = tuple(f"W:{queue(name)}" for name in gateways for queue in (names.lane_queue, names.bulk_queue))
    return (
        Selector(_CONNECTION),
        Selector(("hset", "expire", "unlink"), staged),
        Selector(("rename",), (*staged, *live)),
        # One command names keys of all three kinds, and a command is judged by one selector.
        Selector(("watch",), (*(f"W:{key}" for key in (*epochs, *facts)), *live)),
        Selector(("hlen", "persist", "del"), live),
        Selector(("get", "set"), epochs),
        Selector(("hgetall", "exists", "hset"), facts),
        Selector(("llen",), lanes),
        Selector(("sadd",), (f"W:{names.GATEWAYS_KEY}",)),
    )


def _beat() -> tuple[Selector, ...]:
    return (
        Selector(_CONNECTION),
        Selector(("smembers",), (f"R:{names.GATEWAYS_KEY}",)),
        Selector(("hmget",), (f"R:{names.gateway_key('*')}",)),
        Selector(("lpush", "llen", "unlink"), (f"W:{names.observer_queue('*')}",)),
    )


#: Hashes that say how a gateway is.
_STATUS = (names.gateway_key, names.observer_key, names.alarms_key)


def _exporter() -> tuple[Selector, ...]:
    """The rights to read gateways' status and metrics; no peer's record, no request, no result; nothing to write."""
    hashes = (*_STATUS, names.metrics_key)
    return (
        Selector((*_CONNECTION, "info")),
        Selector(("smembers",), (f"R:{names.GATEWAYS_KEY}",)),
        Selector(("hget", "hgetall"), tuple(f"R:{key('*')}" for key in hashes)),
        Selector(("llen",), ("R:gateway.*", f"R:{names.poison_key('*')}")),
        # With --per-peer: traffic and the last handshake.
        Selector(("hscan",), (f"R:{names.seen_key('*')}",)),
    )


def _flower(events: str) -> tuple[Selector, ...]:
    return (
        Selector((*_CONNECTION, "psubscribe", "punsubscribe"), channels=(events,)),
        # Lengths of queues; those of events are never stored.
        Selector(("llen",), ("gateway.*", "celeryev.*", "peerlane.unrouted", names.poison_key("*"))),
        # How gateways are; no peer, and nothing of a message that was set aside but that there is one.
        Selector(("smembers",), (f"R:{names.GATEWAYS_KEY}",)),
        Selector(("hgetall",), tuple(f"R:{key('*')}" for key in _STATUS)),
    )
