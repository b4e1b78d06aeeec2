"""The connection of an asyncio program: whatever happens to it, requests are sent and their outcomes heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from faultproxy import FaultProxy
from gateways import new_name
from loops import run_and_leave_nothing
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane.config import names
from peerlane.config.settings import read
from peerlane.tasks.client.aio_subscription import ResultListener, Waiter


def listening(url: str, program: Callable[[ResultListener], Awaitable[None]]) -> None:
    """Run a program with a listener, whose connections it closes."""

    async def run() -> None:
        listener = ResultListener(read(redis_url=url), "iad")
        try:
            async with asyncio.timeout(PATIENCE):
                await program(listener)
        finally:
            await listener.close()

    run_and_leave_nothing(run)


async def sent(waiters: list[Waiter]) -> None:
    """Return once Redis has what they ask for."""
    await asyncio.to_thread(eventually, lambda: not any(waiter.message for waiter in waiters), "all being sent")


def test_what_is_asked_while_a_connection_is_being_made_is_sent(redis_server: RedisServer) -> None:
    queue = f"a-test.{new_name()}"
    waiters: list[Waiter] = []

    async def ask_all_the_time(listener: ResultListener) -> None:
        being_made = asyncio.create_task(listener.ready(listener.loop.time() + PATIENCE))
        while not being_made.done():
            waiters.append(listener.expect(listener.new_id(), given=False, queue=queue, message="a message"))
            await asyncio.sleep(0)
        await being_made
        await sent(waiters)
        for waiter in waiters:
            listener.forget(waiter)

    listening(redis_server.url, ask_all_the_time)
    assert redis_server.redis.llen(queue) == len(waiters)
    redis_server.redis.delete(queue)


def test_where_its_server_is_no_primary_any_more_the_connection_is_made_anew(own_redis: RedisServer) -> None:
    queue = "a-test"

    async def fail_over(listener: ResultListener) -> None:
        await listener.ready(listener.loop.time() + PATIENCE)
        before = link.accepted
        own_redis.redis.replicaof("127.0.0.1", "1")
        waiters = [
            listener.expect(request_id, given=given, queue=queue, message="a message")
            for request_id, given in ((listener.new_id(), False), (names.request_id("iad", "chosen"), True))
        ]
        await asyncio.to_thread(eventually, lambda: link.accepted >= before + 2, "being made anew, and again")
        assert all(waiter.message for waiter in waiters)
        own_redis.redis.replicaof("NO", "ONE")
        await sent(waiters)
        for waiter in waiters:
            record = json.dumps({"status": "SUCCESS", "task_id": waiter.id})
            own_redis.redis.publish(names.result_channels(names.result_key(waiter.id))[-1], record)
            assert await waiter.record == record
            listener.forget(waiter)

    with FaultProxy(str(own_redis.socket)) as link:
        listening(link.url, fail_over)
    assert own_redis.redis.llen(queue) == 2
