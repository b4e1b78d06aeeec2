"""A caller that leaves its wait, however it leaves, leaves no request behind that may still take effect."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import group
from commands import ended, spawned
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from loops import run_and_leave_nothing
from servers import RedisServer
from waiting import PATIENCE, Stopwatch, eventually

from peerlane import AsyncGateway, Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import OutcomeUnknown, TimedOut
from peerlane.tasks.lane.pipeline import send_pipelined
from peerlane.tasks.lane.tasks import task_of


class Left(BaseException):
    """As gevent.Timeout or Celery's SoftTimeLimitExceeded are raised into a wait."""


@contextmanager
def interrupted_once(ready: Callable[[], bool]) -> Generator[None]:
    """Raise ``Left`` into the main thread once something is so."""
    main = threading.main_thread().ident
    assert main is not None

    def leave(*_: object) -> None:
        raise Left

    def watch() -> None:
        eventually(ready, "the request in the lane")
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, leave)
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        watching.join(PATIENCE)
        signal.signal(signal.SIGUSR1, before)


def by_gateway(app: PeerlaneApp, name: str, key: str) -> None:
    Gateway(name, app=app).create_peer(key, timeout=PATIENCE)


def by_gateway_with_an_id(app: PeerlaneApp, name: str, key: str) -> None:
    Gateway(name, app=app).create_peer(key, timeout=PATIENCE, request_id=names.request_id(name, str(uuid.uuid4())))


def by_celery(app: PeerlaneApp, name: str, key: str) -> None:
    task_of(app, names.CREATE_PEER).apply_async(kwargs={"gateway": name, "public_key": key}, expires=PATIENCE).get(
        timeout=PATIENCE
    )


def in_a_pipeline(app: PeerlaneApp, name: str, key: str) -> None:
    create = task_of(app, names.CREATE_PEER)
    list(
        send_pipelined(
            lambda wish: create.apply_async(kwargs={"gateway": name, "public_key": wish}, expires=PATIENCE),
            [key, some_key(), some_key()],
            timeout=PATIENCE,
        )
    )


def in_a_group(app: PeerlaneApp, name: str, key: str) -> None:
    create: Any = task_of(app, names.CREATE_PEER)
    wishes = [{"gateway": name, "public_key": each} for each in (key, some_key(), some_key())]
    sent: Any = group(create.s(**wish) for wish in wishes).apply_async(expires=PATIENCE)
    sent.get(timeout=PATIENCE)


def nothing_came(app: PeerlaneApp, site: GatewayProcess) -> bool:
    """Whether no peer is there once all that waited has had its turn."""
    site.resume()
    lane = Gateway(site.name, app=app)
    return lane.delete_peer(some_key(), timeout=PATIENCE).outcome == "absent" and not list(lane.peers())


@pytest.mark.parametrize(
    "ask", [by_gateway, by_gateway_with_an_id, by_celery, in_a_pipeline, in_a_group], ids=lambda ask: ask.__name__
)
def test_an_exception_raised_into_a_wait_cancels_the_request(
    ask: Callable[[PeerlaneApp, str, str], None], shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    site, most = shared_gateway, 3 if ask in (in_a_pipeline, in_a_group) else 1
    Gateway(site.name, app=app).delete_peer(some_key())
    site.hold()
    with interrupted_once(lambda: site.look().waiting == most), pytest.raises(Left):
        ask(app, site.name, some_key())
    assert nothing_came(app, site)


@pytest.mark.parametrize("how", ["a-timeout-around-it", "a-cancelled-task", "close"])
@pytest.mark.parametrize("given", [False, True], ids=["new", "its-own-id"])
def test_an_asyncio_call_that_is_left_is_cancelled(
    how: str, shared_gateway: GatewayProcess, app: PeerlaneApp, *, given: bool
) -> None:
    site = shared_gateway

    async def leave() -> None:
        async with AsyncGateway(site.name, app=app) as lane:
            await lane.delete_peer(some_key(), timeout=PATIENCE)
            await asyncio.to_thread(site.hold)
            request_id = names.request_id(site.name, str(uuid.uuid4())) if given else None
            asked = asyncio.create_task(lane.create_peer(some_key(), timeout=PATIENCE, request_id=request_id))
            await asyncio.to_thread(eventually, lambda: site.look().waiting == 1, "the request in the lane")
            if how == "a-timeout-around-it":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await asked
                return
            if how == "close":
                await lane.close()
            else:
                asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    run_and_leave_nothing(leave)
    assert nothing_came(app, site)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("many", [False, True], ids=["one", "a-list"])
def test_a_command_that_is_ended_cancels_what_it_has_asked_for(
    number: signal.Signals,
    own_redis: RedisServer,
    gateway: MakeGateway,
    client: MakeClient,
    tmp_path: Path,
    *,
    many: bool,
) -> None:
    site, listed = gateway(redis=own_redis), tmp_path / "list.csv"
    keys = [some_key() for _ in range(3)]
    listed.write_text("public_key\n" + "\n".join(keys) + "\n")
    site.hold()
    about = ("--from", listed) if many else ("--public-key", keys[0])
    process = spawned("peer", "create", site.name, *about, "--timeout", "100", "--json", redis=own_redis.url)
    eventually(lambda: _waiting(site) > 0, "the request in the lane")
    process.send_signal(number)
    status, out, err = ended(process)
    assert status == 130, err
    assert json.loads(out)
    site.resume()
    api = client(site, redis=own_redis)
    assert api.delete_peer(some_key(), timeout=PATIENCE).outcome == "absent"
    assert api.delete_peer(some_key(), timeout=PATIENCE, bulk=True).outcome == "absent"
    assert list(api.peers()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_an_import_that_is_ended_imports_nothing(
    number: signal.Signals, own_redis: RedisServer, gateway: MakeGateway, client: MakeClient, tmp_path: Path
) -> None:
    site, file = gateway(redis=own_redis), tmp_path / "wg0.conf"
    file.write_text(f"[Peer]\nPublicKey = {some_key()}\nAllowedIPs = 10.8.0.7/32\n")
    site.hold()
    process = spawned("gateway", "import", site.name, file, "--timeout", "100", "--json", redis=own_redis.url)
    eventually(lambda: _waiting(site) > 0, "the request in the lane")
    process.send_signal(number)
    status, out, err = ended(process)
    assert status in (3, 130), err  # its answer is that of its cancel, where that came in time
    assert json.loads(out)["error"]["code"] in ("timed_out", "interrupted")
    site.resume()
    api = client(site, redis=own_redis)
    assert api.delete_peer(some_key(), timeout=PATIENCE, bulk=True).outcome == "absent"
    assert list(api.peers()) == []


def _waiting(site: GatewayProcess) -> int:
    lane = site.look()
    return lane.waiting + lane.waiting_bulk


def test_many_timeouts_of_one_moment_are_all_told_as_that(gateway: MakeGateway, app: PeerlaneApp) -> None:
    site, count = gateway(), 600

    async def time_out() -> list[Any]:
        async with AsyncGateway(site.name, app=app) as lane:
            await lane.create_peer(some_key(), timeout=PATIENCE)
            await asyncio.to_thread(site.hold)
            asked = (lane.create_peer(some_key(), timeout=1) for _ in range(count))
            return await asyncio.gather(*asked, return_exceptions=True)

    ends = run_and_leave_nothing(time_out)
    assert {type(end) for end in ends} == {TimedOut}
    assert len(ends) == count
    site.resume()
    lane = Gateway(site.name, app=app)
    assert lane.delete_peer(some_key(), timeout=PATIENCE).outcome == "absent"
    assert len(list(lane.peers())) == 1


class TestOneRequestIdAskedAtOnce:
    def test_is_answered_at_once_to_all(self, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
        request, key = names.request_id(shared_gateway.name, str(uuid.uuid4())), some_key()

        async def ask() -> list[Any]:
            async with AsyncGateway(shared_gateway.name, app=app) as lane:
                asked = (lane.create_peer(key, timeout=PATIENCE, request_id=request) for _ in range(3))
                return await asyncio.gather(*asked)

        watch = Stopwatch()
        first, *others = run_and_leave_nothing(ask)
        assert watch.seconds < PATIENCE / 2, "nobody waits for its timeout"
        assert first.outcome == "created"
        assert others == [first, first]

    @pytest.mark.parametrize("how", ["times-out", "is-cancelled"])
    def test_is_not_cancelled_by_one_that_gives_up(
        self, how: str, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        site = shared_gateway
        request, key = names.request_id(site.name, str(uuid.uuid4())), some_key()

        async def ask() -> tuple[Any, Any]:
            async with AsyncGateway(site.name, app=app) as lane:
                await asyncio.to_thread(site.hold)
                patient = asyncio.create_task(lane.create_peer(key, timeout=PATIENCE, request_id=request))
                within = 2 if how == "times-out" else 60
                hasty = asyncio.create_task(lane.create_peer(key, timeout=within, request_id=request))
                await asyncio.to_thread(eventually, lambda: site.look().waiting == 2, "both in the lane")
                if how == "is-cancelled":
                    hasty.cancel()
                end = (await asyncio.gather(hasty, return_exceptions=True))[0]
                site.resume()
                return end, await patient

        end, result = run_and_leave_nothing(ask)
        assert isinstance(end, OutcomeUnknown if how == "times-out" else asyncio.CancelledError)
        assert result.outcome == "created"


def test_reading_keeps_no_request_waiting(shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    done = threading.Event()

    async def create_while_reading() -> str:
        async with AsyncGateway(shared_gateway.name, app=app) as lane:
            reading = asyncio.create_task(lane._in_thread(done.wait, 60))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a page that takes long
            try:
                return (await lane.create_peer(some_key(), timeout=PATIENCE)).outcome
            finally:
                done.set()
                await reading

    assert run_and_leave_nothing(create_while_reading) == "created"
