"""Records what a release puts into Redis: ``python tests/support/record_release.py REVISION > recorded-VERSION.json``.

Run by the release that is recorded, in its working copy, before the next one changes the wire. What it writes are the
messages of its clients, word by word, what its writer stores, and the results it gives for the same calls.
test_upgrade.py replays the messages on today's gateway and compares the results.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent))

from gateways import GatewayProcess, close
from keys import key_number
from servers import RedisServer

from peerlane import AsyncGateway, Gateway, create_peer, delete_peer
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.errors import PeerlaneError

NAME = "iad"
WISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "with everything": {
        "allowed_ips": ["10.8.3.1/32", "fd00:8::31/128"],
        "preshared_key": base64.b64encode(b"p" * 32).decode(),
        "keepalive": 25,
        "ttl": 3600,
        "labels": {"user": "ada"},
    },
}


def calls(app: PeerlaneApp, timeout: float = 0.3) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way to ask that a caller of the release has, and how to ask so. By default nobody waits for the answer."""
    gateway = Gateway(NAME, app=app)
    for number, (title, wish) in enumerate(WISHES.items()):
        key = key_number(9_000 + number)
        yield f"create, {title}", lambda key=key, wish=wish: gateway.create_peer(key, timeout=timeout, **wish)
        yield f"delete, {title}", lambda key=key: gateway.delete_peer(key, timeout=timeout)
    if hasattr(gateway, "create_peers"):
        keys = [key_number(9_030 + number) for number in range(3)]
        wishes = [{"public_key": key, **wish} for key, wish in zip(keys, [*WISHES.values(), {}], strict=True)]
        # The last one conflicts with the second.
        wishes[-1]["allowed_ips"] = ["10.8.3.1/32"]
        yield "create, as a list", lambda: gateway.create_peers(wishes, timeout=timeout)
        yield "delete, as a list", lambda: gateway.delete_peers(keys, timeout=timeout)
    celery = {"gateway": NAME, "public_key": key_number(9_010)}
    yield "create, by Celery", lambda: app.tasks[create_peer.name].apply_async(kwargs=celery, expires=60)
    yield "delete, by Celery", lambda: app.tasks[delete_peer.name].apply_async(kwargs=celery, expires=60)
    yield "create, in bulk", lambda: gateway.create_peer(key_number(9_011), timeout=timeout, bulk=True)
    yield "create, by asyncio", lambda: asyncio.run(by_asyncio(app, timeout))


async def by_asyncio(app: PeerlaneApp, within: float) -> None:
    async with AsyncGateway(NAME, app=app) as gateway:
        await gateway.create_peer(key_number(9_012), timeout=within)


def messages(server: RedisServer) -> list[dict[str, str]]:
    """What its clients send to a gateway that seems to live, and takes nothing."""
    ahead = (server.redis.time()[0] + 100_000) * 1000
    server.redis.hset(names.gateway_key(NAME), mapping={"heartbeat": ahead, "phase": "serving", "public_key": "k"})
    server.redis.sadd(names.GATEWAYS_KEY, NAME)
    app = PeerlaneApp(read(redis_url=server.url))
    recorded: list[dict[str, str]] = []
    for title, ask in calls(app):
        with suppress(PeerlaneError):
            ask()
        for queue in (names.lane_queue(NAME), names.bulk_queue(NAME)):
            while (message := server.redis.rpop(queue)) is not None:
                request = json.loads(str(message))["headers"]["id"]
                # What its client wrote when it gave up, if it did.
                tombstone = server.redis.get(names.result_key(request)) or ""
                recorded.append({"call": title, "queue": queue, "message": str(message), "tombstone": str(tombstone)})
    close(app)
    server.redis.flushall()
    return recorded


def results(server: RedisServer, app: PeerlaneApp) -> list[dict[str, str]]:
    """What its writer answers to each call, as stored."""
    known: set[Any] = set(server.redis.keys("celery-task-meta-*"))
    recorded: list[dict[str, str]] = []
    for title, ask in calls(app, 20):
        pending = ask()
        if hasattr(pending, "get"):
            cast("Any", pending).get(timeout=20)
        (key,) = set(server.redis.keys("celery-task-meta-*")) - known
        known.add(key)
        recorded.append({"call": title, "result": str(server.redis.get(key))})
    return recorded


def stored(server: RedisServer, directory: Path) -> dict[str, Any]:
    """What its writer answers, and what it has stored of peers, by part of the gateway's keys."""
    writer = GatewayProcess(NAME, server.url, directory, dataplane="memory")
    writer.start()
    app = PeerlaneApp(read(redis_url=server.url))
    answers = results(server, app)
    for key in (key_number(9_011), key_number(9_012)):  # which no call deletes
        Gateway(NAME, app=app).delete_peer(key, timeout=20)
    for number, wish in enumerate(WISHES.values()):
        Gateway(NAME, app=app).create_peer(key_number(9_020 + number), timeout=20, **wish)
    close(app)
    writer.stop()
    writer.finish()
    keys = {"peers": names.peers_key(NAME), "addresses": names.addresses_key(NAME), "gateway": names.gateway_key(NAME)}
    parts = {part: cast("dict[str, str]", server.redis.hgetall(key)) for part, key in keys.items()}
    return {"results": answers, "stored": parts}


def main() -> None:
    """Record, and print."""
    with tempfile.TemporaryDirectory(prefix="peerlane-") as name:
        server = RedisServer(Path(name))
        server.start()
        try:
            recorded = {"messages": messages(server), **stored(server, Path(name))}
        finally:
            server.stop()
    print(json.dumps({"revision": sys.argv[1], **recorded}, indent=1))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
