"""The scene of deploy/test_secrets.py: secrets go every way into a gateway's system, and all that comes out is kept."""

from __future__ import annotations

import base64
import json
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import planted
import preloaded
from fenced import FencedServer
from flowers import Page, flower
from gateways import GatewayProcess, clean_environment, close
from keys import some_key
from observers import Observer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import BadSettings, read
from peerlane.tasks.admin.peer_import import import_file
from peerlane.tasks.errors import PeerlaneError

ROOT = Path(__file__).resolve().parents[2]
BROKEN = some_key()

#: Keyword arguments of creates that are refused, with a secret where it does not belong.
MISPLACED: tuple[dict[str, Any], ...] = (
    {"preshared_key": planted.text("not-base64")},
    {"preshared_key": planted.key("cut-off")[:-2]},
    {"preshared_key": planted.key("in-a-list").encode().hex()},
    {"allowed_ips": [planted.key("as-an-address")]},
    {"allowed_ips": planted.text("as-addresses")},
    {"keepalive": planted.key("as-a-number")},
    {"ttl": planted.text("as-a-time")},
    {"labels": planted.key("as-labels")},
    {"psk": planted.key("unknown-name")},
    {"PresharedKey": planted.key("another-case")},
    {"private_key": planted.key("private-one")},
    {planted.text("as-a-name"): 1},
    {"preshared_key": {"value": planted.key("nested")}},
    {"deadline": planted.key("as-a-deadline")},
    {"pinned": planted.key("as-a-flag")},
)


@dataclass
class Scene:
    """What was heard, by the way it came out."""

    logs: dict[str, str] = field(default_factory=dict[str, str])
    events: list[bytes] = field(default_factory=list[bytes])
    pages: dict[str, str] = field(default_factory=dict[str, str])
    errors: list[BaseException] = field(default_factory=list[BaseException])
    commands: dict[str, str] = field(default_factory=dict[str, str])
    command_lines: set[bytes] = field(default_factory=set[bytes])
    #: Key → what Redis holds there.
    redis: dict[str, bytes] = field(default_factory=dict[str, bytes])
    #: All that Redis was ever told to store.
    history: bytes = b""

    def attempt(self, act: Callable[[], object]) -> None:
        """Do what may be refused."""
        try:
            act()
        except (PeerlaneError, BadSettings) as error:
            self.errors.append(error)


def play(server: FencedServer, directory: Path, *, sealed: bool) -> Scene:
    """Play it; with ``sealed`` API and gateway have a key to seal preshared keys with."""
    scene = Scene()
    key_file = directory / "psk.key"
    key_file.write_text(planted.key("sealing-key"))
    key_file.chmod(0o600)
    # Each scene with its kind of log lines.
    settings: dict[str, Any] = {"psk_key_file": key_file} if sealed else {"log_format": "json"}
    private = directory / "iad.key"
    private.write_text(planted.key("private-key"))
    private.chmod(0o600)
    # A record that does not parse, as another version or a hand may leave it.
    broken = {"v": 1, "allowed_ips": ["10.8.9.9/32"], "preshared_key": planted.text("broken-record")}
    server.redis.hset(names.peers_key("iad"), BROKEN, json.dumps(broken))
    server.redis.hset(names.addresses_key("iad"), "10.8.9.9/32", BROKEN)
    writer = GatewayProcess(
        "iad",
        server.url_of("writer-iad"),
        directory,
        dataplane="memory",
        prefix=["env"],  # a forked process has another command line
        private_key_file=private,
        test_failpoints=directory / "failpoints",
        **settings,
    )
    writer.loglevel, writer.may_show_tracebacks = "debug", True
    hearing = _Hearing(server, scene)
    app = PeerlaneApp(read(redis_url=server.url_of("api-iad"), **settings))
    operator = PeerlaneApp(read(redis_url=server.url_of("operator-iad"), **settings))
    try:
        writer.start()
        observer = Observer(writer, redis_url=server.url_of("observer-iad"))
        with flower(server.url_of("flower"), directory, FLOWER_BASIC_AUTH=f"ada:{planted.FLOWER_PASSWORD}") as page:
            user = f"ada:{planted.FLOWER_PASSWORD}"
            eventually(lambda: "iad@" in page.get("/workers", user=user)[1], "Flower to see the gateway")
            _ask(scene, Gateway("iad", app=app), app)
            _import(scene, operator)
            _send_raw(server, app, scene)
            _crash(scene, Gateway("iad", app=app), directory, writer)
            _command(scene, server, directory, settings)
            _read_flower(scene, page, user)
            scene.command_lines |= _command_lines()
        observer.stop()
        observer.close()
        scene.logs["observer"] = observer.log
    finally:
        close(app)
        close(operator)
        hearing.end()
        writer.finish()
    scene.logs |= {"writer": writer.log, "flower": page.log.read_text(), "redis": server.log}
    _read_redis(scene, server)
    return scene


def _ask(scene: Scene, gateway: Gateway, app: PeerlaneApp) -> None:
    """Requests as callers send them: granted, refused, conflicting, given up."""
    key = some_key()
    gateway.create_peer(key, preshared_key=planted.key("granted"))
    scene.attempt(lambda: gateway.create_peer(key, preshared_key=planted.key("conflicting")))
    scene.attempt(lambda: gateway.create_peer(BROKEN, preshared_key=planted.key("broken")))
    scene.attempt(lambda: gateway.create_peer(some_key(), preshared_key=planted.key("late"), timeout=0.0001))
    scene.attempt(
        lambda: gateway.create_peer(some_key(), preshared_key=planted.key("not-served"), allowed_ips=["192.0.2.1/32"])
    )
    for wish in MISPLACED:
        arguments = {"gateway": "iad", "public_key": some_key(), **wish}
        task = app.tasks[names.CREATE_PEER]
        scene.attempt(lambda arguments=arguments, task=task: task.apply_async(kwargs=arguments).get(timeout=5))
    scene.attempt(lambda: gateway.create_peer(planted.text("as-a-public-key")))
    scene.attempt(lambda: gateway.delete_peer(planted.text("as-a-public-key")))
    scene.attempt(lambda: gateway.peer(planted.text("as-a-public-key")))


def _import(scene: Scene, operator: PeerlaneApp) -> None:
    """A file that is taken, and one that is not."""
    peer = f"[Peer]\nPublicKey = {some_key()}\nAllowedIPs = 10.8.7.8/32\n"
    taken = f"{peer}PresharedKey = {planted.key('brought-along')}\n"
    assert import_file(taken.encode(), "iad", app=operator).created == 1
    refused = f"[Interface]\nPrivateKey = {planted.key('foreign-device')}\n{peer}"
    refused += f"PresharedKey = {planted.key('imported')}\nNonsense = {planted.text('nonsense')}\n"
    scene.attempt(lambda: import_file(refused.encode(), "iad", app=operator))


def _send_raw(server: FencedServer, app: PeerlaneApp, scene: Scene) -> None:
    """What no client of ours would send; with the rights of the API."""
    seen: list[str] = []
    with server.client("api-iad") as redis:
        for wish in MISPLACED:
            identity = names.request_id("iad", str(uuid.uuid4()))
            seen.append(names.result_key(identity))
            kwargs = {"gateway": "iad", "public_key": some_key(), "preshared_key": planted.key("raw"), **wish}
            redis.lpush(
                names.lane_queue("iad"), _message(identity, f"[[], {json.dumps(kwargs)}, {{}}]", names.CREATE_PEER)
            )
        positional, a_list = planted.key("positional"), planted.key("a-list")
        for body in ('"no list"', "[]", f'[["{positional}"], {{}}, {{}}]', f'[[], ["{a_list}"], {{}}]', "no JSON"):
            identity = names.request_id("iad", str(uuid.uuid4()))
            seen.append(names.result_key(identity))
            redis.lpush(names.lane_queue("iad"), _message(identity, body, names.CREATE_PEER))
        identity = names.request_id("iad", str(uuid.uuid4()))
        body = f'[[], {{"preshared_key": "{planted.key("no-task")}"}}, {{}}]'
        redis.lpush(names.lane_queue("iad"), _message(identity, body, f"evil.{planted.text('task')}"))
        redis.lpush(names.lane_queue("iad"), f"no JSON at all: {planted.text('garbage')}")
        redis.lpush(names.lane_queue("iad"), _message(f"iad.{planted.text('id')} ", "[[], {}, {}]", names.CREATE_PEER))
        redis.lpush(names.lane_queue("iad"), _message(planted.text("foreign-id"), "[[], {}, {}]", names.CREATE_PEER))
        eventually(lambda: all(redis.get(key) for key in seen), "every raw request to be answered")
    for key in seen:
        identity = key.removeprefix(names.RESULT_PREFIX)
        scene.attempt(lambda identity=identity: app.tasks[names.CREATE_PEER].AsyncResult(identity).get(timeout=5))


def _message(identity: str, body: str, task: str) -> str:
    """As kombu writes it."""
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"id": identity, "task": task, "argsrepr": planted.text("argsrepr"), "kwargsrepr": "()"},
            "properties": {
                "delivery_info": {"exchange": "", "routing_key": "x"},
                "delivery_tag": str(uuid.uuid4()),
                "body_encoding": "base64",
            },
        }
    )


def _crash(scene: Scene, gateway: Gateway, directory: Path, writer: GatewayProcess) -> None:
    """What nobody foresaw: an error inside the writer, with a stack in its log."""
    (directory / "failpoints").write_text("before_commit:raise\n")
    scene.attempt(lambda: gateway.create_peer(some_key(), preshared_key=planted.key("crash")))
    assert "FailpointError" in writer.log
    (directory / "failpoints").write_text("before_acknowledge:raise\n")
    scene.attempt(lambda: gateway.create_peer(some_key(), preshared_key=planted.key("crash-2")))


def _command(scene: Scene, server: FencedServer, directory: Path, settings: dict[str, Any]) -> None:
    """The command line, with each user's URL in its environment."""
    listed = directory / "list.jsonl"
    wishes = [{"public_key": some_key(), "preshared_key": planted.text("in-a-file")}, {"psk": planted.key("in-a-file")}]
    listed.write_text("".join(json.dumps(wish) + "\n" for wish in wishes))
    conf = directory / "bad.conf"
    conf.write_text(f"[Interface]\nPrivateKey = {planted.text('conf')}\n[Peer]\nPresharedKey = {planted.key('x')}?\n")
    variables = {f"PEERLANE_{name.upper()}": str(value) for name, value in settings.items()}
    url, wrong = server.url_of("operator-iad"), f"unix://nobody:{planted.REDIS_PASSWORD}@{server.socket}"
    for words, redis in (
        (["gateway", "list", "--json"], url),
        (["gateway", "show", "iad"], url),
        (["gateway", "show", "iad", "--json"], url),
        (["peer", "list", "iad", "--json"], url),
        (["peer", "show", "iad", BROKEN, "--json"], url),
        (["peer", "create", "iad", "--from", str(listed), "--json"], url),
        (["gateway", "import", "iad", str(conf), "--json"], url),
        (["gateway", "import", "iad", str(conf)], url),
        (["gateway", "poison", "iad", "--json"], url),
        (["gateway", "list", "--json"], wrong),
        (["gateway", "list"], wrong),
        (["gateway", "list", "--json"], f"redis://ada:{planted.REDIS_PASSWORD}@127.0.0.1:1/0"),
        (["gateway", "list", "--json"], f"http://ada:{planted.REDIS_PASSWORD}@127.0.0.1:6379/0"),
        (["gateway", "list", "--json"], f"redis://ada:{planted.REDIS_PASSWORD}@127.0.0.1:no-port/0"),
        (["doctor", "--json"], url),
        (["doctor"], url),
    ):
        # The command line of a forked process is another.
        command = [*(() if scene.commands else ("env",)), sys.executable, "-m", "peerlane.workers.cli", *words]
        file = directory / f"said-{len(scene.commands)}"
        with file.open("wb") as output:
            environment = clean_environment() | variables | {"PEERLANE_REDIS_URL": redis}
            process = preloaded.start(command, ROOT, environment, output)
        scene.command_lines |= _command_lines()
        process.wait(240)
        scene.commands[f"{' '.join(words)} {len(scene.commands)}"] = file.read_text(errors="replace")


def _read_flower(scene: Scene, page: Page, user: str) -> None:
    eventually(lambda: "FAILURE" in page.get("/api/tasks", user=user)[1], "Flower to hear of a refusal")
    tasks = json.loads(page.get("/api/tasks?limit=500", user=user)[1])
    paths = ["/workers", "/tasks", "/broker", "/api/workers", "/api/tasks?limit=500", "/metrics", "/api/task/types"]
    for path in [*paths, *(f"/task/{identity}" for identity in tasks), *(f"/api/task/info/{task}" for task in tasks)]:
        status, body = page.get(path, user=user)
        scene.pages[f"{path} {status}"] = body
    # Without a password and with another one.
    scene.pages["/workers 401"] = page.get("/workers")[1] + page.get("/workers", user="ada:wrong")[1]


def _read_redis(scene: Scene, server: FencedServer) -> None:
    redis = server.redis
    for key in map(str, cast("Iterator[object]", redis.scan_iter(count=1000))):
        value: object
        match str(redis.type(key)):
            case "string":
                value = redis.get(key)
            case "hash":
                value = redis.hgetall(key)
            case "list":
                value = redis.lrange(key, 0, -1)
            case "set":
                value = redis.smembers(key)
            case kind:
                assert kind == "zset"
                value = redis.zrange(key, 0, -1)
        scene.redis[key] = repr(value).encode()
    scene.history = b"\n".join(
        path.read_bytes() for path in sorted(server.directory.rglob("*")) if path.suffix == ".aof"
    )


def _command_lines() -> set[bytes]:
    """Those of every process on this machine."""
    lines: set[bytes] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.add(path.read_bytes())
        except OSError:
            continue
    return lines


class _Hearing:
    """Every event on the fleet's channel, as it is."""

    def __init__(self, server: FencedServer, scene: Scene) -> None:
        self._pubsub = server.redis.pubsub()
        self._pubsub.psubscribe("/0.celeryev/*")
        self._scene, self._ended = scene, threading.Event()
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        while not self._ended.is_set():
            message = cast("object", self._pubsub.get_message(timeout=0.1))
            if message is not None:
                self._scene.events.append(json.dumps(message, default=str).encode())

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._pubsub.close()
