"""``peer create | delete`` by region or labels: each line goes where one peer would; answers name the gateway."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from commands import document, ended, peerlane, spawned
from gateways import GatewayProcess, MakeClient, new_name
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane.config import names

ROOM = 40


@pytest.fixture(scope="module")
def region() -> str:
    """A region that no other test's gateways are of."""
    return new_name()


@pytest.fixture(scope="module")
def two(
    redis_server: RedisServer, region: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[GatewayProcess]]:
    """Two gateways of the region, with room for 40 peers each; the second has a label."""
    made = [
        GatewayProcess(
            new_name(),
            redis_server.url,
            tmp_path_factory.mktemp("gateway"),
            dataplane="memory",
            region=region,
            max_peers=ROOM,
            lane_cap=10_000,
            labels=f"tier={tier}",
        )
        for tier in ("a", "b")
    ]
    for each in made:
        each.start()
    yield made
    for each in made:
        each.finish()


@pytest.fixture(autouse=True)
def _emptied(two: list[GatewayProcess], client: MakeClient) -> Iterator[None]:  # pyright: ignore[reportUnusedFunction] - pytest uses it
    yield
    for each in two:
        each.resume()
        lane = client(each)
        lane.delete_peers([peer.public_key for peer in lane.peers()], timeout=30)
        # Placement goes by what the last heartbeat told.
        eventually(lambda lane=lane: int(lane.info().peers) == 0, "the gateway telling of no peers")


def keys_on(client: MakeClient, site: GatewayProcess) -> set[str]:
    return {peer.public_key for peer in client(site).peers()}


def lines_of(keys: list[str], **more: Any) -> str:
    return "\n".join(json.dumps({"public_key": key, **more}) for key in keys)


def run(two: list[GatewayProcess], *words: str, stdin: str = "", status: int = 0) -> dict[str, Any]:
    result = peerlane(*words, "--json", redis=str(two[0].settings["redis_url"]), stdin=stdin)
    assert result.exit_code == status, result.output
    return document(result)


def test_a_list_is_spread_and_each_answer_names_its_gateway(
    two: list[GatewayProcess], region: str, client: MakeClient
) -> None:
    keys = [some_key() for _ in range(70)]
    answer = run(two, "peer", "create", "--region", region, "--from", "-", "--timeout", "30", stdin=lines_of(keys))
    assert answer["region"] == region
    assert "gateway" not in answer
    assert [entry["public_key"] for entry in answer["results"]] == keys
    assert [entry["line"] for entry in answer["results"]] == list(range(1, 71))
    by_gateway = Counter(entry["gateway"] for entry in answer["results"])
    assert by_gateway == {site.name: 35 for site in two}
    assert answer["summary"] | {"seconds": 0} == {
        "asked": 70,
        "answered": 70,
        "created": 70,
        "gateways": {name: {"created": 35} for name in sorted(by_gateway)},
        "seconds": 0,
    }
    for site in two:
        assert keys_on(client, site) == {
            entry["public_key"] for entry in answer["results"] if entry["gateway"] == site.name
        }

    again = run(two, "peer", "create", "--region", region, "--from", "-", stdin=lines_of(keys))
    assert [(entry["outcome"], entry["gateway"]) for entry in again["results"]] == [
        ("existing", entry["gateway"]) for entry in answer["results"]
    ]


def test_a_person_reads_where_each_peer_is(two: list[GatewayProcess], region: str) -> None:
    keys = [some_key() for _ in range(2)]
    url = str(two[0].settings["redis_url"])
    result = peerlane("peer", "create", "--region", region, "--from", "-", redis=url, stdin=lines_of(keys))
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    places = {f"created on {site.name}" for site in two}
    assert {line.partition(": ")[2].split("  ")[0] for line in (first, second)} == places
    assert first.startswith("line 1: created on ")
    assert keys[0] in first
    assert all(f"on {site.name}: 1 created" in result.stderr for site in two)
    gone = peerlane("peer", "delete", "--region", region, *keys, redis=url)
    assert gone.exit_code == 0, gone.output
    assert {line.split("  ")[0] for line in gone.stdout.splitlines()} == {f"deleted on {site.name}" for site in two}


def test_labels_choose_too_and_what_is_refused_names_its_gateway(
    two: list[GatewayProcess], region: str, client: MakeClient
) -> None:
    key, name = some_key(), two[1].name
    by_label = ("--region", region, "--where", "tier=b")
    answer = run(two, "peer", "create", *by_label, "--from", "-", stdin=lines_of([key]))
    assert answer["where"] == {"tier": "b"}
    assert answer["results"][0]["gateway"] == name
    list_of = [{"public_key": key, "keepalive": 9}, {"public_key": "short"}, {"ttl": 60}, {"public_key": some_key()}]
    bad = run(two, "peer", "create", *by_label, "--from", "-", stdin=json.dumps(list_of), status=1)
    assert [entry["error"]["code"] for entry in bad["results"][:3]] == ["conflict", "invalid", "invalid"]
    assert bad["results"][0]["gateway"] == name
    assert "gateway" not in bad["results"][2], "a line that could not be read belongs to none"
    assert bad["results"][3]["outcome"] == "created"
    assert bad["summary"]["gateways"][name] == {"created": 1, "failed": 2}
    assert keys_on(client, two[0]) == set()


def test_what_no_gateway_takes_is_refused_and_the_rest_is_done(two: list[GatewayProcess], region: str) -> None:
    keys = [some_key() for _ in range(2 * ROOM + 3)]
    words = ("peer", "create", "--region", region, "--from", "-", "--timeout", "30")
    answer = run(two, *words, stdin=lines_of(keys), status=1)
    assert answer["summary"]["created"] == 2 * ROOM
    refused = [entry for entry in answer["results"] if "error" in entry]
    assert {entry["error"]["code"] for entry in refused} == {"unavailable"}
    assert [entry["public_key"] for entry in refused] == [
        entry["public_key"] for entry in answer["results"] if "gateway" not in entry
    ]
    assert all(two[0].name in entry["error"]["message"] for entry in refused)


def test_of_a_region_without_gateways_each_line_is_unavailable_and_a_bad_one_still_invalid(
    two: list[GatewayProcess],
) -> None:
    for words in (
        ("peer", "create", "--region", "mars", "--from", "-"),
        ("peer", "delete", "--region", "mars", "--from", "-"),
    ):
        answer = run(two, *words, stdin=lines_of([some_key()]), status=3)
        assert [entry["error"]["code"] for entry in answer["results"]] == ["unavailable"]
        assert answer["summary"]["gateways"] == {}
    answer = run(two, "peer", "create", "--region", "mars", "--from", "-", stdin='{"ttl": 60}\n{', status=1)
    assert [entry["error"]["code"] for entry in answer["results"]] == ["invalid", "invalid"]


def test_peers_are_deleted_wherever_they_are(two: list[GatewayProcess], region: str, client: MakeClient) -> None:
    keys = [some_key() for _ in range(68)]
    run(two, "peer", "create", "--region", region, "--from", "-", "--timeout", "30", stdin=lines_of(keys))
    twice = client(two[0]).create_peer(some_key()).public_key
    client(two[1]).create_peer(twice)
    stranger = some_key()
    listed = "\n".join([*keys, stranger, twice, "short"])
    answer = run(two, "peer", "delete", "--region", region, "--from", "-", "--timeout", "30", stdin=listed, status=1)
    assert [entry.get("outcome") for entry in answer["results"]] == ["deleted"] * 68 + ["absent", "deleted", None]
    assert answer["results"][-1]["error"]["code"] == "invalid"
    assert (answer["summary"]["deleted"], answer["summary"]["absent"], answer["summary"]["failed"]) == (69, 1, 1)
    assert keys_on(client, two[0]) | keys_on(client, two[1]) == set()
    assert run(two, "peer", "delete", "--region", region, stranger)["results"][0]["outcome"] == "absent"


def test_without_redis_nothing_was_sent() -> None:
    result = peerlane("peer", "create", "--region", "eu", "--from", "-", "--json", stdin=lines_of([some_key()]))
    assert result.exit_code == 3
    error = document(result)["error"]
    assert error["code"] == "outcome_unknown"
    assert "nothing was" in error["message"]


def test_ctrl_c_cancels_what_is_outstanding_on_every_gateway(
    two: list[GatewayProcess], region: str, client: MakeClient, redis_server: RedisServer, tmp_path: Any
) -> None:
    for site in two:
        site.hold()
    path = tmp_path / "list"
    path.write_text(lines_of([some_key() for _ in range(70)]))
    words = ("peer", "create", "--region", region, "--from", path, "--timeout", "60", "--json")
    process = spawned(*words, redis=redis_server.url)
    queues = [names.bulk_queue(site.name) for site in two]
    eventually(lambda: all(redis_server.redis.llen(queue) for queue in queues), "a slice in each lane")
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process)
    for site in two:
        site.resume()
    assert status == 130, err
    assert json.loads(out)["summary"]["answered"] == 0
    for site in two:
        client(site).create_peer(key := some_key(), timeout=30)
        assert keys_on(client, site) == {key}, "what was cancelled never takes effect"
