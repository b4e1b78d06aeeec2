"""Gateways are upgraded first: today's understands what earlier clients send, and what earlier writers stored.

Recorded from the release before (record_release.py), not built from the history, which a checkout may lack. Messages
are replayed word by word, but for their ids and deadlines; answers are read as that release's clients read them.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import key_number
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane.config import names
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.wire.commit_record import decode

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded-0.1.0.json").read_text())
MESSAGES: dict[str, dict[str, str]] = {one["call"]: one for one in RECORDED["messages"]}
NAME = "iad"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    made = RedisServer(tmp_path_factory.mktemp("r"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def today(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of today, of the name that the messages have."""
    made = GatewayProcess(NAME, server.url, tmp_path_factory.mktemp("today"), dataplane="memory")
    made.start()
    yield made
    made.finish()


def renewed(server: RedisServer, call: str, **changes: Any) -> tuple[str, str]:
    """A recorded message with a new id and a deadline that is to come, and its id."""
    message = json.loads(MESSAGES[call]["message"])
    request = names.request_id(NAME, str(uuid.uuid4()))
    message["headers"]["id"] = message["headers"]["root_id"] = message["properties"]["correlation_id"] = request
    arguments, wish, embedded = json.loads(base64.b64decode(message["body"]))
    wish |= {"deadline": (server.redis.time()[0] + 30) * 1000} | changes
    message["body"] = base64.b64encode(json.dumps([arguments, wish, embedded]).encode()).decode()
    return request, json.dumps(message)


def word(channel: Any) -> str | None:
    """What was published there, if something was."""
    heard = channel.get_message(timeout=PATIENCE)
    return str(heard["data"]) if heard is not None and heard["type"] == "message" else None


def answered(server: RedisServer, call: str, **changes: Any) -> Mapping[str, Any]:
    """What the release's client would read: it waits on the channel of its request, and looks at the key."""
    request, message = renewed(server, call, **changes)
    with server.redis.pubsub() as channel:
        channel.subscribe(names.result_key(request))
        channel.get_message(timeout=10)
        server.redis.lpush(MESSAGES[call]["queue"], message)
        told = eventually(lambda: word(channel), "a publication on the request's own channel")
    stored = cast("str | None", server.redis.get(names.result_key(request)))
    assert told == stored, "what is published is what is stored"
    found: dict[str, Any] = json.loads(stored or "null")
    assert found["task_id"] == request
    return found


@pytest.mark.parametrize("call", MESSAGES)
def test_a_message_of_the_release_before_is_carried_out(server: RedisServer, today: GatewayProcess, call: str) -> None:
    found = answered(server, call)
    assert found["status"] == "SUCCESS", found
    wanted = {"create": "created", "delete": "deleted"}[call.partition(",")[0]]
    assert found["result"]["outcome"] == wanted
    assert set(found["result"]) >= {"outcome", "gateway", "public_key"}
    assert today.status is None


def test_every_way_to_ask_was_recorded() -> None:
    assert {call.partition(", ")[2] for call in MESSAGES} >= {"plain", "with everything", "by Celery", "by asyncio"}
    assert any(one["queue"] == names.bulk_queue(NAME) for one in MESSAGES.values())


@pytest.mark.usefixtures("today")
def test_a_refusal_is_one_that_its_client_can_read(server: RedisServer) -> None:
    assert answered(server, "create, with everything")["status"] == "SUCCESS"
    found = answered(server, "create, with everything", public_key=key_number(9_099))
    assert found["status"] == "FAILURE"
    refusal = found["result"]
    assert (refusal["exc_type"], refusal["exc_module"]) == ("Conflict", "peerlane")
    (message,) = refusal["exc_message"]
    assert isinstance(message, str)
    assert answered(server, "delete, with everything")["result"]["outcome"] == "deleted"


def test_what_its_client_has_cancelled_is_not_carried_out(server: RedisServer, today: GatewayProcess) -> None:
    request, message = renewed(server, "create, plain", public_key=key_number(9_098))
    recorded = MESSAGES["create, plain"]
    tombstone = recorded["tombstone"].replace(json.loads(recorded["message"])["headers"]["id"], request)
    today.hold()
    server.redis.lpush(recorded["queue"], message)
    assert server.redis.set(names.result_key(request), tombstone, nx=True, ex=600)
    today.resume()
    assert answered(server, "create, plain")["status"] == "SUCCESS"  # what came later is done
    assert not server.redis.hexists(names.peers_key(NAME), key_number(9_098))
    assert server.redis.get(names.result_key(request)) == tombstone
    with pytest.raises(TimedOut):
        decode(tombstone)
    assert answered(server, "delete, plain")["result"]["outcome"] == "deleted"


def test_what_its_writer_stored_is_loaded(server: RedisServer, gateway: MakeGateway, client: MakeClient) -> None:
    made = gateway("fra", redis=server, start=False)
    for part, key in (("peers", names.peers_key("fra")), ("addresses", names.addresses_key("fra"))):
        server.redis.hset(key, mapping=RECORDED["stored"][part])
    server.redis.hset(names.gateway_key("fra"), mapping=RECORDED["stored"]["gateway"])
    server.redis.hdel(names.gateway_key("fra"), "public_key")  # the key file is another one here
    made.start()
    peers = {peer.public_key: peer for peer in client("fra", redis=server).peers()}
    assert set(peers) == set(RECORDED["stored"]["peers"])
    assert peers[key_number(9_021)].labels == {"user": "ada"}
    assert client("fra", redis=server, timeout=20).delete_peer(key_number(9_020)).outcome == "deleted"
    assert made.look().facts["peers"] in ("2", "1")
    assert "does not parse" not in made.log
