"""A message that ends its writer again and again is set aside, with its caller told; the lane goes on."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from commands import asked
from gateways import GatewayProcess, MakeClient, MakeGateway
from hypothesis import given
from hypothesis import strategies as st
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin.poison_messages import SecretLeftOut, drop, drop_all, find, replay, set_aside_messages, shown
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import Conflict, Invalid, WriterError
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.values.keys import make_preshared_key
from peerlane.tasks.wire.model import SEALED
from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.set_aside import LONGEST, MOST, SetAside, read_request
from peerlane.workers.lane.poison import DELIVERIES, set_aside


@pytest.fixture
def redis(app: PeerlaneApp) -> Redis:
    """An operator's connection."""
    return lanes_of(app).redis


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """The file that says at which point a writer dies."""
    return tmp_path / "failpoints"


@pytest.fixture
def sealing_key(tmp_path: Path) -> Path:
    """A file for PEERLANE_PSK_KEY_FILE."""
    file = tmp_path / "psk.key"
    file.touch(mode=0o600)
    file.write_text(some_key() + "\n")
    return file


@pytest.fixture
def process(gateway: MakeGateway, control: Path, sealing_key: Path) -> GatewayProcess:
    """Its callers do not seal."""
    return gateway(test_failpoints=control, psk_key_file=sealing_key)


def long_ago(server: RedisServer, site: GatewayProcess) -> None:
    """Make what a dead writer had taken look as if it had been taken longer ago than any request takes."""
    index = names.unacked_key(site.name, "_index")
    redis: Any = server.redis
    eventually(lambda: redis.zcard(index), "a message that was taken and not acknowledged")
    for tag in redis.zrange(index, 0, -1):
        redis.zadd(index, {tag: 1})


def die_of_it(server: RedisServer, site: GatewayProcess, control: Path) -> None:
    """The writer takes the message, and it ends it."""
    site.await_end()
    long_ago(server, site)
    control.write_text("before_apply:kill")


def send(app: PeerlaneApp, gateway: str, key: str, preshared: str) -> LaneResult:
    kwargs = {"gateway": gateway, "public_key": key, "preshared_key": preshared, "labels": {"job": "7"}}
    return task_of(app, names.CREATE_PEER).apply_async(kwargs=kwargs, expires=300)


def test_what_ends_the_writer_three_times_is_set_aside_and_the_lane_goes_on(
    process: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer, control: Path
) -> None:
    caller, key, secret = Gateway(process.name, app=app), some_key(), make_preshared_key()
    control.write_text("before_apply:kill")
    sent = send(app, process.name, key, secret)
    for _ in range(DELIVERIES):
        die_of_it(redis_server, process, control)
        process.start(wait=False)  # it may die of the message before anybody sees it serve
    process.await_serving()
    with pytest.raises(WriterError, match=f"set aside after {DELIVERIES} deliveries"):
        sent.get(timeout=20)
    control.write_text("")
    assert caller.create_peer(some_key(), timeout=10).outcome == "created"
    assert caller.peer(key) is None
    eventually(lambda: not redis_server.redis.hlen(names.unacked_key(process.name)), "every message being acknowledged")

    def poison(*words: str) -> Any:
        return asked("gateway", "poison", process.name, *words, redis_url=redis_server.url)

    (message,) = poison()["messages"]
    assert message["request_id"] == sent.id
    assert "set aside after" in message["reason"]
    document = poison("--show", message["id"])
    assert document["arguments"]["public_key"] == key
    assert document["arguments"]["preshared_key"] == "(hidden)"
    assert document["outcome"] == "writer_error"
    assert secret not in json.dumps(document)
    assert secret not in process.log
    assert secret.encode() not in b"".join(kept(redis_server, process.name)), "it is sealed where it lies"

    assert poison("--replay", message["id"])["result"]["outcome"] == "created"
    assert poison()["messages"] == []
    peer = caller.peer(key)
    assert peer is not None
    assert peer.preshared_key is not None
    assert SEALED.fullmatch(peer.preshared_key)
    with pytest.raises(WriterError):
        sent.get(timeout=5)  # what was said of the first request stays so


def test_two_deaths_are_no_reason_to_set_a_request_aside(
    process: GatewayProcess, app: PeerlaneApp, redis: Redis, redis_server: RedisServer, control: Path
) -> None:
    control.write_text("before_apply:kill")
    sent = send(app, process.name, some_key(), make_preshared_key())
    die_of_it(redis_server, process, control)
    process.start(wait=False)
    process.await_end()
    control.write_text("")
    long_ago(redis_server, process)
    process.start()
    assert sent.get(timeout=20)["outcome"] == "created"
    assert set_aside_messages(redis, process.name) == []


def a_request(gateway: str, **arguments: Any) -> bytes:
    """A create as it is on the queue."""
    body = json.dumps([[], {"gateway": gateway, "deadline": 5, **arguments}, {}])
    properties = {"body_encoding": "base64", "delivery_tag": "x"}
    whole = {"headers": {"task": names.CREATE_PEER, "id": f"{gateway}.x"}, "properties": properties}
    return json.dumps(whole | {"body": base64.b64encode(body.encode()).decode()}).encode()


def put_aside(redis: Redis, gateway: str, message: bytes) -> None:
    set_aside(redis, gateway, why="for a test", queue=names.bulk_queue(gateway), message=message)


def test_a_message_stays_set_aside_until_its_request_is_granted(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis: Redis
) -> None:
    site = gateway()
    caller, key = client(site), some_key()
    caller.create_peer(key, allowed_ips=["10.8.0.9"])
    put_aside(redis, site.name, a_request(site.name, public_key=key, allowed_ips=["10.8.0.10"]))
    (message,) = set_aside_messages(redis, site.name)
    with pytest.raises(Conflict):
        replay(app, redis, site.name, message.id, timeout=10)
    assert set_aside_messages(redis, site.name) == [message]
    assert shown(message)["arguments"]["allowed_ips"] == ["10.8.0.10"]
    caller.delete_peer(key)
    assert replay(app, redis, site.name, message.id, timeout=10)["outcome"] == "created"
    assert set_aside_messages(redis, site.name) == []


def test_another_gateways_request_is_not_asked_again(app: PeerlaneApp, redis: Redis) -> None:
    put_aside(redis, "iad", a_request("fra", public_key=some_key()))
    (message,) = set_aside_messages(redis, "iad")
    with pytest.raises(Invalid, match="a request for another gateway"):
        replay(app, redis, "iad", message.id, timeout=10)
    drop(redis, "iad", message.id)
    assert set_aside_messages(redis, "iad") == []


def test_what_was_no_message_is_set_aside_and_never_shown(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis: Redis, redis_server: RedisServer
) -> None:
    site = gateway()
    contents = [b"", b"no message", b"\xff\x00", b"{}", b'{"properties":{}}', b"[" * 1000, b'{"psk":"SECRETSECRET"}']
    for content in contents:
        redis.lpush(names.lane_queue(site.name), content)
    assert client(site).create_peer(some_key(), timeout=10).outcome == "created"
    messages = set_aside_messages(redis, site.name)
    assert [message.size for message in reversed(messages)] == [len(content) for content in contents]
    assert b"SECRET" not in b"".join(kept(redis_server, site.name))
    for message in messages:
        document = shown(message)
        assert "arguments" not in document
        assert not document["replayable"]
        assert "SECRET" not in json.dumps(document)
        with pytest.raises(Invalid, match="is no request that could be asked again"):
            replay(app, redis, site.name, message.id, timeout=5)
    assert "SECRET" not in site.log


def test_a_message_that_is_no_request_is_set_aside_with_the_id_of_its_caller(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis: Redis
) -> None:
    site = gateway()
    for number in (f"{site.name}.odd", "odd"):
        app.send_task("no.such.task", queue=names.lane_queue(site.name), task_id=number, kwargs={"psk": "SECRET"})
    client(site).create_peer(some_key(), timeout=10)
    latest, first = set_aside_messages(redis, site.name)
    assert (first.request_id, latest.request_id) == (f"{site.name}.odd", None)
    with pytest.raises(Invalid, match="no such task"):
        LaneResult(f"{site.name}.odd", backend=app.backend, app=app).get(timeout=5)
    assert "SECRET" not in site.log


def test_the_list_is_bounded_and_so_is_each_message(redis: Redis) -> None:
    put_aside(redis, "full", b"first")
    for _ in range(MOST + 5):
        put_aside(redis, "full", b"x" * 10)
    put_aside(redis, "full", a_request("full", public_key=some_key(), labels={"a": "x" * LONGEST}))
    messages = set_aside_messages(redis, "full")
    assert len(messages) == MOST
    assert len(b"first") not in {message.size for message in messages}
    assert messages[0].size > LONGEST
    assert messages[0].request is None
    assert drop_all(redis, "full") == MOST
    assert set_aside_messages(redis, "full") == []


def test_what_somebody_else_put_into_the_list_disturbs_nobody(redis: Redis) -> None:
    for junk in (b"", b"\xff", b"{}", b"[]", b'{"id":1}', b"[" * 5000, json.dumps({"id": [], "message": 7}).encode()):
        redis.rpush(names.poison_key("junk"), junk)
    put_aside(redis, "junk", b"a message")
    (message,) = set_aside_messages(redis, "junk")
    with pytest.raises(Invalid, match="has set no message nope aside"):
        find(redis, "junk", "nope")
    assert message.request is None


def test_a_record_that_somebody_else_wrote_shows_no_secret_either(app: PeerlaneApp, redis: Redis) -> None:
    secret, base = make_preshared_key(), {"at": 1, "reason": "r", "queue": "q", "size": 1, "task": names.CREATE_PEER}
    for number, arguments in enumerate(
        (
            {"gateway": "forged", "public_key": some_key(), "preshared_key": secret},
            {"gateway": "forged", "public_key": some_key(), "psk": secret},
            {"gateway": "forged", "public_key": [secret]},
        )
    ):
        redis.lpush(names.poison_key("forged"), json.dumps({**base, "id": str(number), "arguments": arguments}))
    messages = set_aside_messages(redis, "forged")
    assert len(messages) == 3
    for message in messages:
        assert secret not in json.dumps(shown(message))
    with pytest.raises(Invalid):
        replay(app, redis, "forged", "1", timeout=1)
    drop_all(redis, "forged")


@pytest.mark.parametrize(
    "arguments",
    [
        {"public_key": "SECRETSECRET"},
        {"public_key": some_key(), "allowed_ips": ["SECRETSECRET"]},
        {"public_key": some_key(), "preshared_key": "SECRETSECRET"},
        {"public_key": some_key(), "ttl": "SECRETSECRET"},
        {"public_key": some_key(), "labels": {"SECRET SECRET": "SECRETSECRET"}},
        {"public_key": some_key(), "psk": "SECRETSECRET"},
    ],
    ids=lambda arguments: list(arguments)[-1],
)
def test_a_secret_in_the_wrong_place_is_not_shown(arguments: dict[str, Any]) -> None:
    message = a_request("iad", **arguments)
    aside = SetAside("1", 0, "for a test", "gateway.iad", len(message), read_request(message, PskCipher()))
    document = shown(aside)
    assert "arguments" not in document
    assert "SECRET" not in json.dumps(document) + aside.record()


def kept(server: RedisServer, gateway: str) -> list[bytes]:
    """The list as Redis holds it."""
    return [str(record).encode() for record in server.redis.lrange(names.poison_key(gateway), 0, -1)]


def test_without_a_sealing_key_a_preshared_key_is_not_kept_and_the_message_is_not_asked_again(
    gateway: MakeGateway, app: PeerlaneApp, redis: Redis, redis_server: RedisServer
) -> None:
    site, key, secret = gateway(), some_key(), make_preshared_key()
    message = a_request(site.name, public_key=key, preshared_key=secret, labels={"job": "7"})
    put_aside(redis, site.name, message)
    assert secret.encode() not in b"".join(kept(redis_server, site.name))
    (aside,) = set_aside_messages(redis, site.name)
    document = shown(aside)
    assert secret not in json.dumps(asked("gateway", "poison", site.name, redis_url=redis_server.url))
    assert (document["replayable"], document["arguments"]["preshared_key"]) == (False, "(was not kept)")
    assert (document["arguments"]["public_key"], document["arguments"]["labels"]) == (key, {"job": "7"})
    with pytest.raises(SecretLeftOut, match="ask for the peer anew"):
        replay(app, redis, site.name, aside.id, timeout=5)
    refused = asked("gateway", "poison", site.name, "--replay", aside.id, redis_url=redis_server.url, expect=1)
    assert refused["error"]["code"] == "secret_left_out"
    assert set_aside_messages(redis, site.name) == [aside], "it is still there"
    assert Gateway(site.name, app=app).peer(key) is None


def test_what_came_sealed_stays_as_it_came() -> None:
    key, raw = some_key(), bytes(range(32))
    sealed = PskCipher([raw]).encrypt("iad", key, make_preshared_key())
    request = read_request(a_request("iad", public_key=key, preshared_key=sealed), PskCipher())
    assert request is not None
    assert request.complete
    assert request.arguments["preshared_key"] == sealed


@given(
    st.fixed_dictionaries(
        {"public_key": st.just(some_key())},
        optional={
            "preshared_key": st.sampled_from([make_preshared_key(), "", "x"]),
            "keepalive": st.integers(-1, 70000),
            "ttl": st.integers(-1, 10**6),
            "psk": st.just("S"),
        },
    ),
    st.booleans(),
)
def test_no_request_keeps_a_preshared_key_in_clear(arguments: dict[str, Any], seals: bool) -> None:  # noqa: FBT001 - drawn
    message = a_request("iad", **arguments)
    request = read_request(message, PskCipher([bytes(range(32))] if seals else []))
    record = SetAside("1", 0, "for a test", "gateway.iad", len(message), request).record()
    secret = str(arguments.get("preshared_key", ""))
    assert len(secret) < 40 or secret not in record
    again = SetAside.from_record(record.encode())
    assert again is not None
    assert again.request == request
    if request is not None:
        assert request.complete == (seals or "preshared_key" not in arguments)
