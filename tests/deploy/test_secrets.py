"""No secret shows where it does not belong: they are planted in every way into the system, and every way out is read.

The scene (support/secret_scene.py) plays once with sealed preshared keys and once without; each test reads one way out.
"""

from __future__ import annotations

import base64
import json
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any, cast

import planted
import pytest
from fenced import fenced
from keys import some_key
from secret_scene import MISPLACED, Scene, play

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read, shown
from peerlane.tasks.admin.acl import ROLES, users
from peerlane.tasks.values.keys import KeyPair
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import CreatePeer
from peerlane.tasks.wire.stored_peer import Peer

#: The scene is played within the first test's time.
pytestmark = pytest.mark.timeout(600)

#: Unsealed, the whole scene plays once more.
CLEAR = pytest.param("clear", marks=pytest.mark.slow("plays a second scene of thirty processes and commands"))


@pytest.fixture(scope="module", params=["sealed", CLEAR])
def sealed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "sealed")


@pytest.fixture(scope="module")
def scene(sealed: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:  # noqa: FBT001 - a fixture
    lines = [user.line(password=planted.REDIS_PASSWORD) for user in users(["iad"], ROLES)]
    with fenced("\n".join([*lines, "user default off"]) + "\n") as server:
        yield play(server, tmp_path_factory.mktemp("scene"), sealed=sealed)


# The ways out


@pytest.mark.parametrize("log", ["writer", "observer", "flower", "redis"])
def test_no_log_shows_one_not_even_at_the_debug_level(scene: Scene, log: str) -> None:
    assert scene.logs[log]
    assert planted.traces(scene.logs[log]) == []


def events_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The events in a message of their channel; those of a group are in one."""
    if message["type"] != "pmessage":
        return []
    body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
    return cast("list[dict[str, Any]]", body) if isinstance(body, list) else [body]


def test_no_event_shows_one(scene: Scene) -> None:
    told = [event for message in scene.events for event in events_of(json.loads(message))]
    assert sum(event["type"] == "task-received" for event in told) > len(MISPLACED)
    assert [trace for event in scene.events for trace in planted.traces(event)] == []


def test_no_result_shows_one(scene: Scene) -> None:
    results = {key: value for key, value in scene.redis.items() if key.startswith(names.RESULT_PREFIX)}
    assert len(results) > len(MISPLACED)
    assert [trace for content in results.items() for part in content for trace in planted.traces(part)] == []


def test_no_page_of_flower_shows_one(scene: Scene) -> None:
    assert any(path.startswith("/task/iad.") and path.endswith(" 200") for path in scene.pages)
    assert {path: traces for path, page in scene.pages.items() if (traces := planted.traces(page))} == {}


def test_no_error_shows_one(scene: Scene) -> None:
    assert len(scene.errors) > 2 * len(MISPLACED)
    for error in scene.errors:
        texts = [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
        assert planted.traces("\n".join(texts)) == []


def test_no_command_shows_one(scene: Scene) -> None:
    assert all(scene.commands.values())
    assert {words: traces for words, said in scene.commands.items() if (traces := planted.traces(said))} == {}


def test_no_command_line_holds_one(scene: Scene) -> None:
    assert any(b"peerlane.workers.gateway" in line for line in scene.command_lines)
    assert [trace for line in scene.command_lines for trace in planted.traces(line)] == []


def test_redis_holds_one_only_where_it_was_put_on_purpose(scene: Scene, sealed: bool) -> None:  # noqa: FBT001
    # The broken record was put there by hand.
    assert {key for key, value in scene.redis.items() if planted.traces(value)} <= {names.peers_key("iad")}
    assert scene.redis[names.poison_key("iad")]
    peers = {name for name in scene.redis if name == names.peers_key("iad")}
    assert peers
    traces = [trace for trace in planted.traces(scene.redis[names.peers_key("iad")]) if "broken-record" not in trace]
    assert bool(traces) is not sealed


def test_a_sealed_key_was_never_in_redis_in_clear(scene: Scene, sealed: bool) -> None:  # noqa: FBT001
    """Nor in a queue, nor among the messages taken, nor in the append-only file."""
    assert (b"enc:1:" in scene.history) is sealed
    put_there_raw = {"broken-record", "raw", "argsrepr", "garbage", "id", "foreign-id", "no-task", "task", "positional"}
    put_there_raw |= {"a-list"}.union(*(planted.named(json.dumps(wish).encode()) for wish in MISPLACED))
    assert (planted.named(scene.history) <= put_there_raw) is sealed, "where it is not sealed it stands in clear"


@pytest.mark.parametrize(
    "make",
    [
        lambda: CreatePeer(gateway="iad", public_key=some_key(), preshared_key=planted.key("in-a-wish")),
        lambda: Peer(
            public_key=some_key(), allowed_ips=(Prefix.parse("10.8.0.2/32"),), preshared_key=planted.key("in-a-peer")
        ),
        lambda: KeyPair(planted.key("in-a-pair"), some_key()),
        lambda: read(redis_url=f"redis://ada:{planted.REDIS_PASSWORD}@db.example/0"),
        lambda: shown(read(redis_url=f"redis://ada:{planted.REDIS_PASSWORD}@db.example/0")),
        lambda: PeerlaneApp(read(redis_url=f"redis://ada:{planted.REDIS_PASSWORD}@db.example/0")),
    ],
    ids=["wish", "peer", "pair", "settings", "shown", "app"],
)
def test_no_repr_shows_one(make: Callable[[], object]) -> None:
    made = make()
    assert planted.traces(f"{made!r} {made!s}") == []


def test_what_is_searched_for_would_be_found() -> None:
    secret = planted.key("any")
    for hidden in (
        secret,
        secret.encode(),
        repr({"preshared_key": secret}),
        base64.b64encode(json.dumps([[], {"preshared_key": secret}, {}]).encode()).decode(),
        base64.b64encode(base64.b64encode(secret.encode())).decode(),
        base64.b64decode(secret).hex(),
        secret[:20],
        planted.REDIS_PASSWORD,
    ):
        assert planted.traces(hidden), hidden
    assert planted.traces(some_key() + os.urandom(200).hex()) == []
