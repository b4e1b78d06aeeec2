"""Gateways are upgraded first: today's understands what earlier clients send, and what earlier writers stored.

Recorded from earlier releases (record_release.py), not built from the history, which a checkout may lack. Messages are
replayed word by word, but for their ids and deadlines. Answers are compared with those of that release's writer.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway, new_name
from keys import key_number
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError, TimedOut
from peerlane.tasks.wire.commit_record import decode
from peerlane.tasks.wire.lists import read_answers
from peerlane.tasks.wire.model import DeletePeer, PeerResult

HERE = Path(__file__).parent
RECORDINGS: dict[str, dict[str, Any]] = {
    path.stem.removeprefix("recorded-"): json.loads(path.read_text()) for path in sorted(HERE.glob("recorded-*.json"))
}
NAME = "iad"


class Site:
    """A gateway of today, of the name that the messages of a recording have."""

    def __init__(self, recording: str, server: RedisServer, gateway: GatewayProcess) -> None:
        recorded = RECORDINGS[recording]
        self.server, self.gateway = server, gateway
        self.stored: dict[str, dict[str, str]] = recorded["stored"]
        self.messages: dict[str, dict[str, str]] = {message["call"]: message for message in recorded["messages"]}
        self.results: dict[str, str] = {result["call"]: result["result"] for result in recorded["results"]}


@pytest.fixture(scope="module", params=RECORDINGS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    server.start()
    gateway = GatewayProcess(NAME, server.url, tmp_path_factory.mktemp("today"), dataplane="memory")
    gateway.start()
    yield Site(str(request.param), server, gateway)
    gateway.finish()
    server.stop()


def renewed(site: Site, call: str, **changes: Any) -> tuple[str, str]:
    """A recorded message with a new id and a deadline that is to come, and its id."""
    message = json.loads(site.messages[call]["message"])
    request = names.request_id(NAME, str(uuid.uuid4()))
    message["headers"]["id"] = message["headers"]["root_id"] = message["properties"]["correlation_id"] = request
    arguments, wish, embedded = json.loads(base64.b64decode(message["body"]))
    now = int(site.server.redis.time()[0]) * 1000
    times = {"deadline": now + 30_000, "sent_at": now}
    message["headers"] |= {name: time for name, time in times.items() if name in message["headers"]}
    wish |= {"deadline": times["deadline"]} | changes
    message["body"] = base64.b64encode(json.dumps([arguments, wish, embedded]).encode()).decode()
    return request, json.dumps(message)


def word(channel: Any) -> str | None:
    """What was published there, if something was."""
    heard = channel.get_message(timeout=PATIENCE)
    return str(heard["data"]) if heard is not None and heard["type"] == "message" else None


def answered(site: Site, call: str, **changes: Any) -> dict[str, Any]:
    """What the release's client would read: it waits on the channel of its request, and looks at the key."""
    redis = site.server.redis
    request, message = renewed(site, call, **changes)
    with redis.pubsub() as channel:
        channel.subscribe(names.result_key(request))
        channel.get_message(timeout=10)
        redis.lpush(site.messages[call]["queue"], message)
        published = eventually(lambda: word(channel), "a publication on the request's own channel")
    stored = cast("str | None", redis.get(names.result_key(request)))
    assert published == stored, "what is published is what is stored"
    result: dict[str, Any] = json.loads(stored or "null")
    assert result["task_id"] == request
    return result


def unlike(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Where a client that reads ``old`` would not find its way in ``new``: more fields are none of its business."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name, value in cast("dict[str, Any]", old).items():
            if name not in new:
                yield f"{where}.{name} is missing"
            else:
                yield from unlike(value, new[name], f"{where}.{name}")
    elif isinstance(old, list) and isinstance(new, list):
        pairs = list(zip(cast("list[Any]", old), cast("list[Any]", new), strict=False))
        if len(pairs) != len(cast("list[Any]", old)):
            yield f"{where} is shorter"
        for number, (ours, theirs) in enumerate(pairs):
            yield from unlike(ours, theirs, f"{where}[{number}]")
    elif cast("object", old).__class__ is not cast("object", new).__class__:
        yield f"{where} is {new!r} and was {old!r}"


def test_a_message_of_an_earlier_release_is_carried_out_and_answered_as_its_client_reads_it(site: Site) -> None:
    """In the order in which they were sent: a delete follows its create."""
    for call in site.messages:
        result = answered(site, call)
        assert result["status"] == "SUCCESS", (call, result)
        assert list(unlike(json.loads(site.results[call]), result)) == [], call
        recorded = json.loads(site.results[call])["result"]
        assert outcomes(result["result"]) == outcomes(recorded), call
    assert site.gateway.status is None


def outcomes(result: Mapping[str, Any]) -> list[str]:
    """What came of a request, or of each wish of a list."""
    answers: list[dict[str, Any]] = result.get("answers", [result])
    return [answer["outcome"] if "outcome" in answer else answer["error"]["code"] for answer in answers]


def test_a_field_that_is_missing_or_another_is_noticed() -> None:
    old = {"a": [{"b": 1}], "c": None}
    assert list(unlike(old, {"a": [{"b": 2, "d": 3}], "c": None, "e": 1})) == []
    assert list(unlike(old, {"a": [{}], "c": None})) == [".a[0].b is missing"]
    assert list(unlike(old, {"a": [], "c": "x"})) == [".a is shorter", ".c is 'x' and was None"]


def test_what_its_writer_answered_is_read_by_todays_client(site: Site) -> None:
    """The same request, asked again after the upgrade, is answered with what is stored."""
    for call, stored in site.results.items():
        result = decode(stored)
        if "as a list" not in call:
            assert PeerResult.model_validate(result).outcome in {"created", "deleted"}
        else:
            codes = [answer.code if isinstance(answer, PeerlaneError) else answer.outcome for answer in listed(result)]
            assert codes == outcomes(result)


def listed(result: Mapping[str, Any]) -> list[PeerResult | PeerlaneError]:
    keys = [key_number(number) for number in range(1, 1 + len(result["answers"]))]
    return read_answers(result, [DeletePeer(gateway=NAME, public_key=key) for key in keys])


def test_every_way_to_ask_was_recorded() -> None:
    recorded = {message["call"] for recording in RECORDINGS.values() for message in recording["messages"]}
    ways = {call.partition(", ")[2] for call in recorded}
    assert ways >= {"plain", "with everything", "by Celery", "by asyncio", "in bulk", "as a list"}
    assert {"create, as a list", "delete, as a list"} <= recorded


def test_a_refusal_is_one_that_its_client_can_read(site: Site) -> None:
    assert answered(site, "create, with everything")["status"] == "SUCCESS"
    result = answered(site, "create, with everything", public_key=key_number(9_099))
    assert result["status"] == "FAILURE"
    refusal = result["result"]
    assert (refusal["exc_type"], refusal["exc_module"]) == ("Conflict", "peerlane")
    (message,) = refusal["exc_message"]
    assert isinstance(message, str)
    assert answered(site, "delete, with everything")["result"]["outcome"] == "deleted"


def test_what_its_client_has_cancelled_is_not_carried_out(site: Site) -> None:
    calls = [call for call in site.messages if call.endswith(("plain", "as a list"))]
    assert {call.partition(",")[0] for call in calls} == {"create", "delete"}
    for call in calls:
        if call.startswith("delete"):
            answered(site, call.replace("delete", "create"))
        cancelled_is_not_carried_out(site, call)
        if call.startswith("delete"):
            answered(site, call)


def cancelled_is_not_carried_out(site: Site, call: str) -> None:
    redis, recorded = site.server.redis, site.messages[call]
    before = redis.hgetall(names.peers_key(NAME))
    request, message = renewed(site, call)
    tombstone = recorded["tombstone"].replace(json.loads(recorded["message"])["headers"]["id"], request)
    assert tombstone
    site.gateway.hold()
    redis.lpush(recorded["queue"], message)
    assert redis.set(names.result_key(request), tombstone, nx=True, ex=600)
    site.gateway.resume()
    later = answered(site, "create, plain", public_key=key_number(9_097))
    assert later["status"] == "SUCCESS"  # what came later is done
    after = redis.hgetall(names.peers_key(NAME))
    assert {key: record for key, record in after.items() if key != key_number(9_097)} == before, call
    assert redis.get(names.result_key(request)) == tombstone
    with pytest.raises(TimedOut):
        decode(tombstone)
    assert answered(site, "delete, plain", public_key=key_number(9_097))["result"]["outcome"] == "deleted"


def test_what_its_writer_stored_is_loaded(site: Site, gateway: MakeGateway, client: MakeClient) -> None:
    redis = site.server.redis
    name = new_name()
    made = gateway(name, redis=site.server, start=False)
    for part, key in (("peers", names.peers_key(name)), ("addresses", names.addresses_key(name))):
        redis.hset(key, mapping=cast("dict[Any, Any]", site.stored[part]))
    redis.hset(names.gateway_key(name), mapping=cast("dict[Any, Any]", site.stored["gateway"]))
    redis.hdel(names.gateway_key(name), "public_key")  # the key file is another one here
    made.start()
    peers = {peer.public_key: peer for peer in client(name, redis=site.server).peers()}
    assert set(peers) == set(site.stored["peers"])
    assert peers[key_number(9_021)].labels == {"user": "ada"}
    assert client(name, redis=site.server, timeout=20).delete_peer(key_number(9_020)).outcome == "deleted"
    assert made.look().facts["peers"] in ("2", "1")
    assert "does not parse" not in made.log
