"""Who asks for upkeep during a fault run: beat, as it is, in a thread; and an operator who has no patience."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateways import close
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.celery.schedule import ENOUGH, GatewayScheduler
from peerlane.config.settings import read
from peerlane.tasks.admission.lanes import lanes_of

#: Seconds between two reconciliations that the operator asks for; beat asks for none in less than five.
_EVERY = 1.5
#: Seconds after which the operator wants none any more.
_PATIENCE = 10.0


@contextmanager
def asked_for(socket: Path, gateway: str) -> Generator[None]:
    """Sweeps and reconciliations are asked for all the while; AssertionError if whoever asks came to grief."""
    ended, trouble = threading.Event(), list[BaseException]()
    thread = threading.Thread(target=_ask, args=(socket, gateway, ended, trouble), name="upkeep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(20)
    assert not thread.is_alive(), "beat does not end"
    assert not trouble, f"beat has come to grief: {trouble[0]!r}"


def _ask(socket: Path, gateway: str, ended: threading.Event, trouble: list[BaseException]) -> None:
    ended.wait(0.5)  # callers begin at this moment, too
    app = PeerlaneApp(read(redis_url=f"unix://{socket}"))
    beat = GatewayScheduler(app=app)
    asked = time.monotonic()
    try:
        while not ended.is_set():
            pause = beat.tick()
            if time.monotonic() - asked > _EVERY:
                asked = time.monotonic()
                with suppress(RedisError, OperationalError, OSError):
                    _reconcile(app, gateway)
            ended.wait(min(pause, 0.5))
    except BaseException as error:  # noqa: BLE001 - told by whoever waits for this thread
        trouble.append(error)
    finally:
        beat.close()
        close(app)


def _reconcile(app: PeerlaneApp, gateway: str) -> None:
    lanes = lanes_of(app)
    if lanes.redis.llen(names.observer_queue(gateway)) >= ENOUGH:
        return
    app.send_task(
        names.RECONCILE,
        kwargs={"gateway": gateway, "deadline": lanes.clock.now_ms() + int(_PATIENCE * 1000)},
        task_id=names.request_id(gateway, str(uuid.uuid4())),
        ignore_result=True,
    )
