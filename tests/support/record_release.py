"""Records what a release puts into Redis: ``python tests/support/record_release.py REVISION > recorded-VERSION.json``.

Run by the release that is recorded, in its working copy, before the next one changes the wire. What it writes are the
messages of its clients, word by word, and what its writer stores. test_upgrade.py replays them on today's gateway.
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


def calls(app: PeerlaneApp) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way to ask that a caller of the release has, and how to ask so without waiting for the answer."""
    gateway = Gateway(NAME, app=app)
    for number, (title, wish) in enumerate(WISHES.items()):
        key = key_number(9_000 + number)
        yield f"create, {title}", lambda key=key, wish=wish: gateway.create_peer(key, timeout=0.3, **wish)
        yield f"delete, {title}", lambda key=key: gateway.delete_peer(key, timeout=0.3)
    celery = {"gateway": NAME, "public_key": key_number(9_010)}
    yield "create, by Celery", lambda: app.tasks[create_peer.name].apply_async(kwargs=celery, expires=60)
    yield "delete, by Celery", lambda: app.tasks[delete_peer.name].apply_async(kwargs=celery, expires=60)
    bulk = celery | {"public_key": key_number(9_011)}
    yield (
        "create, in bulk",
        lambda: app.tasks[create_peer.name].apply_async(kwargs=bulk, expires=60, queue=names.bulk_queue(NAME)),
    )
    yield "create, by asyncio", lambda: asyncio.run(by_asyncio(app))


async def by_asyncio(app: PeerlaneApp) -> None:
    async with AsyncGateway(NAME, app=app) as gateway:
        await gateway.create_peer(key_number(9_012), timeout=0.3)


def messages(server: RedisServer) -> list[dict[str, str]]:
    """What its clients send to a gateway that seems to live, and takes nothing."""
    ahead = (server.redis.time()[0] + 100_000) * 1000
    server.redis.hset(names.gateway_key(NAME), mapping={"heartbeat": ahead, "phase": "serving", "public_key": "k"})
    server.redis.sadd(names.GATEWAYS_KEY, NAME)
    app = PeerlaneApp(read(redis_url=server.url))
    found: list[dict[str, str]] = []
    for title, ask in calls(app):
        with suppress(PeerlaneError):
            ask()
        for queue in (names.lane_queue(NAME), names.bulk_queue(NAME)):
            while (message := server.redis.rpop(queue)) is not None:
                request = json.loads(str(message))["headers"]["id"]
                # What its client wrote when it gave up, if it did.
                tombstone = server.redis.get(names.result_key(request)) or ""
                found.append({"call": title, "queue": queue, "message": str(message), "tombstone": str(tombstone)})
    close(app)
    server.redis.flushall()
    return found


def stored(server: RedisServer, directory: Path) -> dict[str, dict[str, str]]:
    """What its writer has stored of peers, by part of the gateway's keys."""
    writer = GatewayProcess(NAME, server.url, directory, dataplane="memory")
    writer.start()
    app = PeerlaneApp(read(redis_url=server.url))
    for number, wish in enumerate(WISHES.values()):
        Gateway(NAME, app=app).create_peer(key_number(9_020 + number), timeout=20, **wish)
    close(app)
    writer.stop()
    writer.finish()
    keys = {"peers": names.peers_key(NAME), "addresses": names.addresses_key(NAME), "gateway": names.gateway_key(NAME)}
    return {part: cast("dict[str, str]", server.redis.hgetall(key)) for part, key in keys.items()}


def main() -> None:
    """Record, and print."""
    with tempfile.TemporaryDirectory(prefix="peerlane-") as name:
        server = RedisServer(Path(name))
        server.start()
        try:
            recorded = {"messages": messages(server), "stored": stored(server, Path(name))}
        finally:
            server.stop()
    print(json.dumps({"revision": sys.argv[1], **recorded}, indent=1))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
