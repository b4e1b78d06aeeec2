"""Messages for a lane that nobody wrote by hand: by a seed each, from garbage to requests with one bit flipped."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from keys import key_number

from peerlane.config import names

#: What stands where another thing should.
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**53 + 1, -(2**63), 10**400, 0.5, float("inf"), float("nan"), 1e308),
    *("", " ", "x", "\0", "é", "\ud800", "a" * 5000, "../..", "gateway.other", "*", "{}", "null", "1", "%s%n", "\n\r"),
    *([], [[]], [None], {}, {"": None}, {"a": {"b": [1]}}, [1, 2, 3], {"__class__": "x"}, {"py/object": "os.system"}),
)
CONTENT_TYPES = ("application/json", "application/x-python-serialize", "application/x-yaml", "text/plain", "", "json")
ENCODINGS = ("utf-8", "UTF8", "binary", "us-ascii", "utf-16", "base64", "zip", "")
TASKS = (
    *(names.CREATE_PEER, names.DELETE_PEER, names.CREATE_PEERS, names.DELETE_PEERS, names.REMOVE_PEERS),
    *(names.MEND_PEERS, names.IMPORT_PEERS),
    *(names.SWEEP, names.RECONCILE, "celery.chord", "celery.backend_cleanup", "celery.starmap", "os.system", ""),
)
SEPARATORS = ".:/*?{}[]\\ \t\n\r\0%$#~-_é"
FIELDS = (
    *("gateway", "public_key", "allowed_ips", "preshared_key", "keepalive", "ttl", "labels", "pinned", "deadline"),
    *(
        "wishes",
        "public_keys",
        "victims",
        "keys",
        "routes",
        "device",
        "token",
        "count",
        "digest",
        "live",
        "self",
        "task_id",
        "kwargs",
        "",
    ),
)
PREFIXES = (
    *("10.8.0.1", "10.8.0.9", "10.8.0.9/32", "10.8.0.0/16", "0.0.0.0/0", "fd00:8::7/128", "::/0", "10.8.0.300"),
    *("10.8.0.9/33", "192.0.2.1/32", "::ffff:10.8.0.9", "10.8.0.9/8", "fe80::1%eth0", "x", "10.8.0.9/-1"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One message."""

    seed: int
    family: str
    raw: bytes
    #: Whether it is certain that no sound request is in it: then it may not change anything.
    barren: bool


class Messages:
    """Makes cases for one gateway. The same seed makes the same case, whatever was made before."""

    def __init__(self, gateway: str, captured: Sequence[bytes]) -> None:
        """``captured`` are messages that a real client has sent."""
        self._gateway = gateway
        self._captured = list(captured)
        self._families: dict[str, tuple[Callable[[random.Random], bytes], bool]] = {
            "garbage": (self._garbage, True),
            "scalars and nests": (self._scalar, True),
            "envelopes with something strange in them": (self._strange_envelope, False),
            "envelopes with something missing": (self._less, False),
            "headers": (self._headers, False),
            "ids with separators": (self._ids, True),
            "content types and encodings": (self._types, False),
            "arguments": (self._arguments, False),
            "bodies": (self._bodies, True),
            "bits flipped": (self._flipped, False),
            "cut and spliced": (self._spliced, False),
            "sizes": (self._sizes, False),
            "messages in messages": (self._embedded, False),
            "sound requests": (self._sound, False),
        }

    def case(self, seed: int) -> Case:
        """The case of a seed."""
        chance = random.Random(seed)
        family = list(self._families)[seed % len(self._families)]
        make, barren = self._families[family]
        return Case(seed, family, make(chance), barren)

    # Parts of messages

    def _envelope(self, chance: random.Random, task: str | None = None, **arguments: Any) -> dict[str, Any]:
        """A sound request, newly made; of a create, unless told otherwise."""
        envelope = cast("dict[str, Any]", json.loads(chance.choice(self._captured)))
        kwargs: dict[str, Any] = {"gateway": self._gateway, "public_key": self._key(chance), **arguments}
        envelope["body"] = packed([[], kwargs, {}])
        envelope["headers"] |= {"id": f"{self._gateway}.{chance.getrandbits(64):x}", "task": task or names.CREATE_PEER}
        envelope["properties"]["delivery_tag"] = f"{chance.getrandbits(64):x}"
        return envelope

    @staticmethod
    def _key(chance: random.Random) -> str:
        return key_number(chance.randrange(1, 500))

    def _strange(self, chance: random.Random) -> Any:
        if chance.random() < 0.2:
            return "".join(chance.choices(string.printable, k=chance.randrange(40)))
        return deepcopy(chance.choice(STRANGE))  # what is put into a message may be changed there

    # Families

    @staticmethod
    def _garbage(chance: random.Random) -> bytes:
        return chance.randbytes(chance.choice((0, 1, 7, 100, 3000)))

    @staticmethod
    def _scalar(chance: random.Random) -> bytes:
        depth = chance.choice((1, 50, 900, 5_000, 60_000))
        nest = chance.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
        return chance.choice((dumped(chance.choice(STRANGE)), nest.encode()))

    def _strange_envelope(self, chance: random.Random) -> bytes:
        envelope = self._envelope(chance)
        for _ in range(chance.randrange(1, 4)):
            put(chance, envelope, self._strange(chance))
        return dumped(envelope)

    def _less(self, chance: random.Random) -> bytes:
        envelope = self._envelope(chance)
        for _ in range(chance.randrange(1, 3)):
            place = chance.choice([envelope, envelope.get("headers"), envelope.get("properties")])
            if isinstance(place, dict) and place:
                del place[chance.choice(list(cast("dict[str, Any]", place)))]
        return dumped(envelope)

    def _headers(self, chance: random.Random) -> bytes:
        envelope = self._envelope(chance, chance.choice(TASKS))
        extra = ("eta", "expires", "retries", "group", "timelimit", "root_id", "parent_id", "stamps", "compression")
        for name in chance.sample([*envelope["headers"], *extra], k=chance.randrange(1, 6)):
            if name not in {"id", "task"} or chance.random() < 0.3:
                envelope["headers"][name] = self._strange(chance)
        return dumped(envelope)

    def _ids(self, chance: random.Random) -> bytes:
        envelope = self._envelope(chance)
        token = list(f"{chance.getrandbits(32):x}")
        token.insert(chance.randrange(len(token) + 1), chance.choice(SEPARATORS.replace("-", "").replace("_", "")))
        gateway = chance.choice((self._gateway, "", "other", f"{self._gateway}x", self._gateway.upper()))
        identity = chance.choice((f"{gateway}.{''.join(token)}", gateway, f".{gateway}", f"{gateway}.", "x" * 5000))
        envelope["headers"]["id"] = chance.choice((identity, [identity], {"id": identity}, None, 7))
        return dumped(envelope)

    def _types(self, chance: random.Random) -> bytes:
        envelope = self._envelope(chance)
        envelope["content-type"] = chance.choice(CONTENT_TYPES)
        envelope["content-encoding"] = chance.choice(ENCODINGS)
        if chance.random() < 0.3:
            envelope["properties"]["body_encoding"] = chance.choice(("base64", "rot13", None, 7, "BASE64"))
        return dumped(envelope)

    def _arguments(self, chance: random.Random) -> bytes:
        task = chance.choice(TASKS[:7])
        known: dict[str, Any] = {
            "allowed_ips": [chance.choice(PREFIXES) for _ in range(chance.randrange(4))],
            "routes": [chance.choice(PREFIXES) for _ in range(chance.randrange(4))],
            "preshared_key": chance.choice((self._key(chance), "short", "A" * 44)),
            "victims": [{"public_key": self._key(chance), "reason": "expired", "created_at": chance.randrange(10)}],
            "wishes": [
                {"public_key": self._key(chance), chance.choice(FIELDS): self._strange(chance)}
                for _ in range(chance.choice((1, 2, 64, 65)))
            ],
            "public_keys": [chance.choice((self._key(chance), "short")) for _ in range(chance.choice((1, 3, 65)))],
            "keys": [self._key(chance) for _ in range(chance.randrange(3))],
            "labels": {chance.choice(("a", "A", "", "x" * 99)): chance.choice(("v", "\0", "x" * 999))},
            "token": chance.choice(("x", "*", "a:b")),
            "digest": "0" * 64,
        }
        arguments: dict[str, Any] = {}
        for name in chance.sample(FIELDS, k=chance.randrange(1, 6)):
            arguments[name] = known[name] if name in known and chance.random() < 0.6 else self._strange(chance)
        for listed, name in ((names.CREATE_PEERS, "wishes"), (names.DELETE_PEERS, "public_keys")):
            if task == listed and chance.random() < 0.7:
                arguments = {name: known[name]}
        envelope = self._envelope(chance, task)
        kwargs: dict[str, Any] = {"gateway": self._gateway, "public_key": self._key(chance)}
        if task not in {names.CREATE_PEER, names.DELETE_PEER}:
            del kwargs["public_key"]
        envelope["body"] = packed([[], kwargs | arguments, {}])
        return dumped(envelope)

    def _bodies(self, chance: random.Random) -> bytes:
        envelope = self._envelope(chance)
        kwargs = {"gateway": self._gateway, "public_key": self._key(chance)}
        body: Any = chance.choice(
            cast(
                "list[Any]",
                [
                    self._strange(chance),
                    [kwargs],
                    [[1], kwargs, {}],
                    [[], list(kwargs), {}],
                    [[], kwargs],
                    [kwargs, [], {}],
                ],
            )
        )
        envelope["body"] = chance.choice(
            (packed(body), packed([[], kwargs, {}])[:-9], base64.b64encode(chance.randbytes(90)).decode(), "%%%", "{}")
        )
        return dumped(envelope)

    def _flipped(self, chance: random.Random) -> bytes:
        raw = bytearray(chance.choice(self._captured))
        for _ in range(chance.choice((1, 1, 2, 8))):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        return bytes(raw)

    def _spliced(self, chance: random.Random) -> bytes:
        first, second = chance.choice(self._captured), chance.choice(self._captured)
        start, end = sorted(chance.sample(range(len(first)), 2))
        return chance.choice((first[:end], first[start:], first[:start] + first[end:], first[:start] + second[start:]))

    def _sizes(self, chance: random.Random) -> bytes:
        size = chance.choice((1_000, 10_000, 60_000, 200_000) if chance.random() < 0.05 else (10, 100, 1_000))
        envelope = self._envelope(chance, labels={"x": "y" * size})
        if chance.random() < 0.5:
            envelope["headers"]["origin"] = "z" * size
        return dumped(envelope)

    def _embedded(self, chance: random.Random) -> bytes:
        envelope, other = self._envelope(chance), self._envelope(chance)
        signature: dict[str, Any] = {
            "task": names.CREATE_PEER,
            "args": [],
            "kwargs": {},
            "options": {"queue": "stolen"},
        }
        match chance.randrange(4):
            case 0:
                envelope["body"] = json.dumps(other)
            case 1:
                envelope["headers"] |= other
            case 2:
                kwargs = {"gateway": self._gateway, "public_key": self._key(chance)}
                part = chance.choice(("callbacks", "errbacks", "chain", "chord"))
                envelope["body"] = packed([[], kwargs, {part: signature if part == "chord" else [signature]}])
            case _:
                envelope["body"] = packed([[], {"gateway": self._gateway, "public_key": envelope}, {}])
        return dumped(envelope)

    def _sound(self, chance: random.Random) -> bytes:
        task = chance.choice((names.CREATE_PEER, names.CREATE_PEER, names.DELETE_PEER))
        return dumped(self._envelope(chance, task))


def dumped(value: Any) -> bytes:
    """JSON with whatever Python can put into it."""
    return json.dumps(value).encode(errors="surrogatepass")


def packed(value: Any) -> str:
    """A body as kombu packs it."""
    return base64.b64encode(dumped(value)).decode()


def put(chance: random.Random, tree: dict[str, Any], value: Any) -> None:
    """Put a value in the place of something in a tree."""
    place: Any = tree
    while True:
        chosen: Any = chance.choice(
            list(cast("dict[str, Any]", place)) if isinstance(place, dict) else range(len(place))
        )
        inner = cast("object", place[chosen])
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.8:
            place = cast("Any", place[chosen])
        else:
            place[chosen] = value
            return
