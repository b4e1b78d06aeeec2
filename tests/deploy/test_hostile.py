"""Whatever is put on a lane, by whoever can reach Redis: the writer lives on, serves the next, and shows no secret."""

from __future__ import annotations

import base64
import gzip
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from gateways import GatewayProcess, close, new_name
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.errors import Conflict, Invalid, PeerlaneError, WriterError
from peerlane.tasks.wire import commit_record

SECRET = base64.b64encode(bytes(range(7, 39))).decode()
FAR = "2099-01-01T00:00:00+00:00"
PAST = "2001-01-01T00:00:00+00:00"


class Message:
    """A request as Celery sends it, in which any part can be made wrong."""

    def __init__(self, gateway: str, *, task: object = names.CREATE_PEER) -> None:
        self.gateway = gateway
        self.key = some_key()
        self.id: object = names.request_id(gateway, str(uuid.uuid4()))
        self.kwargs: Any = {"gateway": gateway, "public_key": self.key, "preshared_key": SECRET}
        self.args: Any = []
        self.embed: Any = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        self.body: object = None
        self.headers: dict[str, Any] = {"lang": "py", "task": task, "retries": 0, "eta": None, "expires": None}
        self.headers |= {"group": None, "timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}", "origin": "x"}
        self.properties: dict[str, Any] = {
            "correlation_id": str(uuid.uuid4()),
            "reply_to": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": names.lane_queue(gateway), "routing_key": names.lane_queue(gateway)},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        }
        self.envelope: dict[str, Any] = {"content-encoding": "utf-8", "content-type": "application/json"}
        self.without: tuple[str, ...] = ()

    def wire(self) -> bytes:
        body = json.dumps([self.args, self.kwargs, self.embed]) if self.body is None else self.body
        if isinstance(body, str | bytes) and self.properties.get("body_encoding") == "base64":
            body = base64.b64encode(body if isinstance(body, bytes) else body.encode()).decode()
        headers = {"id": self.id, "root_id": self.id, "parent_id": None, **self.headers}
        whole: dict[str, Any] = {"body": body, "headers": headers, "properties": self.properties, **self.envelope}
        for path in self.without:
            *outer, last = path.split(".")
            del (cast("dict[str, Any]", whole[outer[0]]) if outer else whole)[last]
        return json.dumps(whole).encode()


@dataclass
class Attack:
    """What is put on the lane, and what becomes of it."""

    name: str
    make: Callable[[Message], object]
    #: The error that a caller learns; "created" where it is a sound request after all; None where its id is not.
    outcome: type[PeerlaneError] | str | None


def change(**fields: Any) -> Callable[[Message], object]:
    """Put ``fields`` in place of the message's own; ``headers`` and ``properties`` are added to them."""

    def make(message: Message) -> None:
        for name, value in fields.items():
            if name in {"headers", "properties", "envelope"}:
                getattr(message, name).update(value)
            else:
                setattr(message, name, value)

    return make


def arguments(**fields: Any) -> Callable[[Message], object]:
    """Add keyword arguments."""
    return lambda message: message.kwargs.update(fields)


def raw(content: bytes | str) -> Callable[[Message], object]:
    """Put this on the lane instead of a message."""
    return lambda _: content if isinstance(content, bytes) else content.encode()


def in_place_of(part: str, value: object) -> Callable[[Message], object]:
    """Put another value in place of a part of the envelope."""
    return lambda message: json.dumps({**json.loads(message.wire()), part: value}).encode()


def some(*values: Any) -> tuple[Any, ...]:
    """Values of any kind."""
    return values


def elsewhere(message: Message) -> dict[str, Any]:
    """A signature that would create a peer through another queue."""
    return {
        "task": names.CREATE_PEER,
        "args": [],
        "kwargs": {"gateway": message.gateway, "public_key": some_key()},
        "options": {"queue": "stolen", "task_id": f"{message.gateway}.stolen"},
        "subtask_type": None,
        "immutable": True,
    }


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


#: In place of what should be something else.
WRONG: tuple[Any, ...] = (None, 7, [], "text")

ENVELOPES = [
    Attack("nothing", raw(b""), None),
    Attack("not JSON", raw(f"psk={SECRET}"), None),
    Attack("not UTF-8", raw(b"\xff\xfe" + SECRET.encode()), None),
    Attack("half of a message", lambda message: message.wire()[:-20], None),
    *(
        Attack(f"the scalar {text[:20]}", raw(text), None)
        for text in ("null", "true", "17", '"text"', "[]", "1e999", "{}")
    ),
    Attack("deeply nested", raw(deep(100_000)), None),
    Attack("a list of itself", raw(json.dumps([{"body": SECRET}])), None),
    *(
        Attack(f"without {path}", change(without=(path,)), None)
        for path in (
            *("properties", "headers", "body", "content-type", "content-encoding"),
            *("properties.delivery_tag", "properties.delivery_info"),
        )
    ),
    *(
        Attack(f"{part} {value!r}", in_place_of(part, value), None)
        for part in ("properties", "headers", "body", "content-type", "content-encoding")
        for value in WRONG
        if not (isinstance(value, str) and part in {"body", "content-type", "content-encoding"})
    ),
    *(
        Attack(f"delivery tag {value!r}", change(properties={"delivery_tag": value}), None)
        for value in some(None, 7, "", [], {})
    ),
    *(
        Attack(f"delivery info {value!r}", change(properties={"delivery_info": value}), None)
        for value in some(
            None, "x", [], {}, {"exchange": None, "routing_key": None}, {"exchange": [], "routing_key": {}}
        )
    ),
    Attack("a body encoding nobody knows", change(properties={"body_encoding": "rot13"}), None),
    Attack("a body that is no base64", in_place_of("body", "%%% no base64 %%%"), Invalid),
    Attack("larger than any request", arguments(labels={"x": "y" * 2**20}), None),
    Attack("a body of 1 MiB", change(body="x" * 2**20), None),
]


TYPES = [
    Attack(kind, change(envelope={"content-type": kind}), Invalid)
    for kind in (
        *("application/x-python-serialize", "application/x-yaml", "application/x-msgpack", "application/text"),
        *("application/data", "text/plain", "", "application/json; charset=utf-8"),
    )
]
ENCODINGS = [
    Attack(f"encoding {encoding!r}", change(envelope={"content-encoding": encoding}), Invalid)
    for encoding in ("binary", "us-ascii", "utf-16", "", "no-such-codec", "zip")
]
TRUSTED = [
    Attack(
        "the type that kombu does not decode",
        change(envelope={"content-type": "application/text", "content-encoding": "binary"}),
        Invalid,
    ),
    Attack(
        "a pickle",
        change(
            envelope={"content-type": "application/x-python-serialize", "content-encoding": "binary"},
            body=b"cos\nsystem\n(S'kill -9 $PPID'\ntR.",
        ),
        Invalid,
    ),
    Attack(
        "a compressed bomb",
        change(headers={"compression": "gzip"}, body=gzip.compress(b"[" + b" " * 2**26)),
        Invalid,
    ),
    *(
        Attack(f"compression {kind!r}", change(headers={"compression": kind}), "created")
        for kind in some("gzip", "application/x-gzip", "no such", 7, [], {})
    ),
]
TASKS = [
    Attack(f"task {task!r}"[:60], change(headers={"task": task}), Invalid)
    for task in some(
        *("no.such.task", "", SECRET, "x" * 10_000, "os.system"),
        *some(None, 7, [], {}, ["celery.ping"]),
        *("celery.backend_cleanup", "celery.chord", "celery.chord_unlock", "celery.group", "celery.chain"),
        *("celery.map", "celery.starmap", "celery.chunks", "celery.accumulate"),
    )
]
STARMAP = [
    Attack(
        "a map over creates",
        change(
            headers={"task": "celery.starmap"},
            kwargs={"task": {"task": names.CREATE_PEER}, "it": [[1], [2]]},
        ),
        Invalid,
    )
]
IDS = [
    *(
        Attack(f"id {value!r}"[:60], change(id=value), None)
        for value in some(
            *some(None, 7, [], {}, "", "x", "other.1", "{gateway}.", "{gateway}.a.b", "{gateway}.a b", "{gateway}.*"),
            *("{gateway}.\n", "{gateway}.é", "{gateway}." + "x" * 10_000, SECRET, "../{gateway}.x", "{gateway}.x\0"),
        )
    ),
    Attack("without headers.id", change(without=("headers.id",)), None),
    Attack("without headers.task", change(without=("headers.task",)), Invalid),
]
HEADERS = [
    Attack("eta far in the future", change(headers={"eta": FAR}), "created"),
    Attack("eta that is none", change(headers={"eta": "tomorrow"}), "created"),
    Attack("expired long ago", change(headers={"expires": PAST}), "created"),
    Attack("expires that is none", change(headers={"expires": {"a": 1}}), "created"),
    Attack("retries without end", change(headers={"retries": "many"}), "created"),
    Attack("time limits", change(headers={"timelimit": [0.001, "x"]}), "created"),
    Attack("a group", change(headers={"group": "g", "group_index": [1]}), "created"),
    Attack("shadowed names", change(headers={"shadow": SECRET, "argsrepr": SECRET, "kwargsrepr": SECRET}), "created"),
    Attack("ignored results", change(headers={"ignore_result": True}), "created"),
    Attack("stamps", change(headers={"stamps": {"a": 1}, "stamped_headers": ["a", 7]}), "created"),
    Attack("an origin that is none", change(headers={"origin": [SECRET]}), "created"),
    Attack("replaced task", change(headers={"replaced_task_nesting": "x", "parent_id": {}, "root_id": []}), "created"),
    Attack("a priority that is none", change(properties={"priority": "high"}), "created"),
    Attack("a reply_to that is none", change(properties={"reply_to": [], "correlation_id": {}}), "created"),
    Attack(
        "delivered through another's queue",
        change(properties={"delivery_info": {"exchange": "stolen", "routing_key": "stolen"}}),
        "created",
    ),
    Attack(
        "back through another's queue",
        change(
            headers={"task": "no.such"},
            properties={"delivery_info": {"exchange": "", "routing_key": "stolen", "redelivered": True}},
        ),
        Invalid,
    ),
]


def embedding(*parts: str) -> Callable[[Message], object]:
    def make(message: Message) -> None:
        for part in parts:
            signature = elsewhere(message)
            message.embed[part] = signature if part == "chord" else [signature]

    return make


EMBEDS = [
    *(
        Attack(f"{part} in a create", embedding(part), "created")
        for part in ("callbacks", "errbacks", "chain", "chord")
    ),
    Attack("all of them", embedding("callbacks", "errbacks", "chain", "chord"), "created"),
    *(Attack(f"embed {value!r}", change(embed=value), "created") for value in some(None, 7, [], "x", {"chain": "x"})),
]


def failing(message: Message) -> None:
    embedding("errbacks", "chord", "callbacks")(message)
    message.kwargs["ttl"] = -1


EMBEDS.append(Attack("errbacks of one that fails", failing, Invalid))

BODIES = [
    *(
        Attack(f"body {body!r}"[:60], change(body=body), Invalid)
        for body in (
            "",
            "{",
            "null",
            "7",
            '"x"',
            "[]",
            "{}",
            "[[],{}]",
            "[[],{},{},{}]",
            deep(50_000),
            b"\xed\xa0\x80",
            b"\xff",
        )
    ),
    Attack("a body with a secret after its end", change(body=f"[[],{{}},{{}}] {SECRET}"), Invalid),
    *(Attack(f"args {value!r}"[:40], change(args=value), Invalid) for value in ([1], [SECRET], "iad", {"a": SECRET})),
    *(Attack(f"kwargs {value!r}"[:40], change(kwargs=value), Invalid) for value in (None, 7, [], [SECRET], "x")),
    Attack("no kwargs", change(kwargs={}), Invalid),
    Attack("another gateway's request", arguments(gateway="elsewhere"), Invalid),
    *(
        Attack(f"argument {name}={value!r}"[:60], arguments(**{name: value}), Invalid)
        for name, value in (
            ("psk", SECRET),
            ("public_key", SECRET[:-1]),
            ("public_key", None),
            ("public_key", [SECRET]),
            ("public_key", "\ud800"),
            ("gateway", {"a": SECRET}),
            ("preshared_key", SECRET + "="),
            ("preshared_key", [SECRET]),
            ("allowed_ips", SECRET),
            ("allowed_ips", [SECRET]),
            ("allowed_ips", [["10.8.0.9"]]),
            ("allowed_ips", ["10.8.0.9/8"]),
            ("allowed_ips", [f"10.8.{n >> 8}.{n & 255}" for n in range(2000)]),
            ("allowed_ips", ["0.0.0.0/0"]),
            ("allowed_ips", []),
            ("keepalive", SECRET),
            ("keepalive", 10**400),
            ("ttl", -1),
            ("ttl", float("inf")),
            ("ttl", float("nan")),
            ("labels", {SECRET: SECRET}),
            ("labels", [SECRET]),
            ("labels", {"x": "y" * 100_000}),
            ("deadline", SECRET),
            ("deadline", -1),
            ("deadline", 2**70),
            ("deadline", True),
            ("self", 1),
            ("task_id", "x"),
            ("", SECRET),
            ("\ud800", 1),
            ("__class__", SECRET),
            ("x" * 100_000, SECRET),
        )
    ),
    Attack("a thousand unknown fields", arguments(**{f"f{n}": SECRET for n in range(1000)}), Invalid),
    Attack("a value nested deep", lambda message: change(body=nested(message, 900))(message), Invalid),
    Attack("a value nested too deep", lambda message: change(body=nested(message, 50_000))(message), Invalid),
    Attack("addresses of the gateway", arguments(allowed_ips=["10.8.0.1"]), Conflict),
]


def nested(message: Message, levels: int) -> str:
    fields = json.dumps(message.kwargs)[1:-1]
    return f'[[],{{{fields},"labels":{deep(levels)}}},{{}}]'


def version_1(kind: str = "application/json", **fields: Any) -> Callable[[Message], object]:
    """A message of Celery's first protocol: all is in the body."""

    def make(message: Message) -> None:
        body: dict[str, Any] = {"task": names.CREATE_PEER, "id": message.id, "args": [], "kwargs": message.kwargs}
        message.body = json.dumps(body | {"eta": None, "utc": True} | fields)
        message.without = ("headers.id", "headers.task")
        message.envelope["content-type"] = kind

    return make


PROTOCOL_1 = [
    Attack("protocol 1", version_1(), None),
    Attack("protocol 1, another task", version_1(task="celery.backend_cleanup"), None),
    Attack("protocol 1, a task that is none", version_1(task=[SECRET]), None),
    Attack("protocol 1, an ETA", version_1(eta=FAR, expires=PAST, callbacks=[{}]), None),
    Attack("protocol 1 in YAML", version_1(kind="application/x-yaml"), None),
]

ATTACKS = [*ENVELOPES, *TYPES, *ENCODINGS, *TRUSTED, *TASKS, *STARMAP, *IDS, *HEADERS, *EMBEDS, *BODIES, *PROTOCOL_1]


class Target:
    """A gateway with a peer of its own, a client, and an ear on all events."""

    def __init__(self, gateway: GatewayProcess, app: PeerlaneApp) -> None:
        self.gateway = gateway
        self.pid = 0
        self.client = Gateway(gateway.name, app=app)
        self.redis = Redis.from_url(str(gateway.settings["redis_url"]), decode_responses=True)
        self._events: Any = self.redis.pubsub(ignore_subscribe_messages=True)
        self._events.psubscribe("/*.celeryev*", "*celery.pidbox*")
        self._events.get_message(timeout=PATIENCE)
        self.client.create_peer(some_key())
        self.seen = ""
        self._read = 0

    def ready(self) -> None:
        """Start the gateway again if an earlier attack has ended it: one failure is not to be everybody's."""
        if self.gateway.status is not None:
            self.gateway.start()
            self.said()
        self.pid = self.gateway.pid

    def close(self) -> None:
        self._events.close()
        self.redis.close()

    def put(self, content: bytes) -> None:
        self.redis.lpush(names.lane_queue(self.gateway.name), content)

    def peers(self) -> dict[str, str]:
        return cast("dict[str, str]", self.redis.hgetall(names.peers_key(self.gateway.name)))

    def outcome(self, request: object) -> str | None:
        return cast("str | None", self.redis.get(names.RESULT_PREFIX + str(request)))

    def _idle(self) -> bool:
        return not self.redis.llen(names.lane_queue(self.gateway.name))

    def good_request(self) -> None:
        """A good create and its deletion, behind whatever waits in the lane; and every event up to their last."""
        key, request = some_key(), names.request_id(self.gateway.name, str(uuid.uuid4()))
        eventually(lambda: self.gateway.status is not None or self._idle(), "the lane being served")
        assert self.gateway.status is None, "the writer has ended"
        assert self.client.create_peer(key, timeout=PATIENCE).outcome == "created"
        assert self.client.delete_peer(key, timeout=PATIENCE, request_id=request).outcome == "deleted"

        def last_event() -> bool:
            while (message := self._events.get_message(timeout=0.02)) is not None:
                self.seen += f"{message['data']}\n{base64.b64decode(json.loads(message['data'])['body']).decode()}\n"
            return any(request in line and '"task-succeeded"' in line for line in self.seen.splitlines())

        eventually(last_event, "the event that the good request succeeded")

    def said(self) -> str:
        """What the worker has logged since it was last asked."""
        text = self.gateway.log[self._read :]
        self._read += len(text)
        return text


@pytest.fixture(scope="module")
def target(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    gateway = GatewayProcess(new_name(), redis_server.url, tmp_path_factory.mktemp("gateway"), dataplane="memory")
    gateway.start()
    app = PeerlaneApp(read(redis_url=redis_server.url))
    target = Target(gateway, app)
    yield target
    target.close()
    close(app)
    gateway.finish()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_writer_outlives_it_and_tells_who_asks(target: Target, attack: Attack) -> None:
    target.ready()
    message = Message(target.gateway.name)
    before = target.peers()
    answer = attack.make(message)
    if isinstance(message.id, str):
        message.id = message.id.replace("{gateway}", target.gateway.name)
    target.put(answer if isinstance(answer, bytes) else message.wire())
    target.good_request()

    assert target.gateway.status is None
    assert target.gateway.look().facts["holder_pid"] == str(target.pid)
    stored = target.outcome(message.id)
    if attack.outcome == "created":
        assert stored, "a sound request is carried out, whatever else its message says"
        assert commit_record.decode(stored)["public_key"] == message.key
        target.client.delete_peer(message.key)
    elif isinstance(attack.outcome, type):
        assert stored, "its caller would wait in vain"
        with pytest.raises(attack.outcome) as caught:
            commit_record.decode(stored)
        assert type(caught.value) is not WriterError
        assert SECRET[:20] not in stored
    else:
        assert stored is None
    assert target.peers() == before
    said = target.said()
    assert SECRET[:20] not in said, "a secret in the log"
    assert SECRET[:20] not in target.seen, "a secret in an event"
    target.seen = ""
    assert "Traceback" not in said
    assert "Logging error" not in said
    assert len(said) < 20_000, "a log that anybody can flood"
    for key in ("stolen", "gateway.elsewhere", "celery", "peerlane.unrouted"):
        assert target.redis.llen(key) == 0
    unacked = names.unacked_key(target.gateway.name)
    eventually(lambda: not target.redis.hlen(unacked), "every message being off the lane")


def test_a_thousand_of_all_kinds_at_once_delay_the_next_request_a_moment(target: Target) -> None:
    for number in range(1000):
        message = Message(target.gateway.name)
        answer = ATTACKS[number % len(ATTACKS)].make(message)
        content = answer if isinstance(answer, bytes) else message.wire()
        if len(content) < 10_000 and not isinstance(ATTACKS[number % len(ATTACKS)].outcome, str):
            target.put(content)
    target.good_request()
    assert target.gateway.status is None
    target.said()
