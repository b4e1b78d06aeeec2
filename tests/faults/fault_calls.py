"""The callers of a fault run, in a process of their own that can be stopped and killed.

One JSON order a line comes in, one JSON answer a line goes out. What they ask for follows from the seed alone, when
they ask does not: that is the machine's business.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from fault_choices import Ask, Chooser, ask_from
from fault_history import Call, End, History, Stalls
from fault_lists import ListCaller

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.client.aio_gateway import AsyncGateway
from peerlane.tasks.errors import KernelError, OutcomeUnknown, PeerlaneError, Refused, StorageError, WriterError
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.model import PeerResult

#: Errors after which the caller knows that nothing was changed.
DEFINITE = (Refused, KernelError, StorageError, WriterError)


def answer(fields: dict[str, Any]) -> None:
    """One line to whoever gives the orders."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


class Callers:
    """All callers of this process: threads with the typed client, and coroutines with the one for asyncio."""

    def __init__(self, redis: str, gateway: str, history: Path, name: str) -> None:
        self.gateway, self.name = gateway, name
        self._app = PeerlaneApp(read(redis_url=redis))
        self._sync = Gateway(gateway, app=self._app)
        self._history_directory = history
        self._history: History | None = None
        self._stalls = Stalls()

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what one order says; what was done."""
        if order["do"] == "history":
            path = self._history_directory / f"{order['name']}.jsonl"
            self._history = History(path, order["name"], self._stalls)
            return {}
        if order["do"] == "ask":
            with ThreadPoolExecutor(8) as threads:
                done = list(threads.map(self._call, map(ask_from, order["asks"])))
            return {"ends": [call.end for call in done], "outcomes": [call.outcome for call in done]}
        return self._work(order)

    def _work(self, order: dict[str, Any]) -> dict[str, Any]:
        kinds = [("t", number) for number in range(order["threads"])] + [("a", n) for n in range(order["tasks"])]
        choices = [
            Chooser(
                self.gateway,
                f"{self.name}{kind}{number}",
                order["seed"],
                order["timeouts"],
                order["contested"],
                bulk=order.get("bulk", False),
                upkeep=order.get("upkeep", False),
                unlike=order.get("unlike", False) and kind == "t",
            )
            for kind, number in kinds
        ]
        limits = (order["calls"], time.monotonic() + order["seconds"], order["pace"])
        sync, coroutines = choices[: order["threads"]], choices[order["threads"] :]
        threads = [threading.Thread(target=self._one_thread, args=(choice, *limits)) for choice in sync]
        if coroutines:
            threads.append(threading.Thread(target=lambda: asyncio.run(self._coroutines(coroutines, *limits))))
        threads += [
            threading.Thread(
                target=ListCaller(self._sync, f"{self.name}l{number}", order["seed"], order["timeouts"]).ask,
                args=(limits[1], self._begun, self._ended),
            )
            for number in range(order.get("lists", 0))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {}

    def _begun(self, ask: Ask) -> tuple[Call, float]:
        return _begun(cast("History", self._history), ask)

    def _ended(self, begun: tuple[Call, float], answer: PeerResult | Exception) -> Call:
        history = cast("History", self._history)
        if isinstance(answer, Exception):
            return history.end(begun, *_failed(answer))
        return history.end(begun, *_succeeded(answer))

    def _one_thread(self, choice: Chooser, calls: int, until: float, pace: float) -> None:
        for ask in choice.asks(calls, until):
            done = self._call(ask)
            choice.learn(ask, done)
            time.sleep(choice.rest(done, pace))

    async def _coroutines(self, choices: Sequence[Chooser], calls: int, until: float, pace: float) -> None:
        async def caller(choice: Chooser) -> None:
            for ask in choice.asks(calls, until):
                done = await self._call_async(gateway, ask)
                choice.learn(ask, done)
                await asyncio.sleep(choice.rest(done, pace))

        async with AsyncGateway(self.gateway, app=self._app) as gateway:
            await asyncio.gather(*(caller(choice) for choice in choices))

    def _call(self, ask: Ask) -> Call:
        history = cast("History", self._history)
        begun = _begun(history, ask)
        try:
            if ask.deadline is not None:
                result = self._by_celery(ask, ask.deadline)
            elif ask.act == "create":
                result = self._sync.create_peer(
                    ask.key, **ask.arguments(), timeout=ask.timeout, request_id=ask.request, bulk=ask.bulk
                )
            else:
                result = self._sync.delete_peer(ask.key, timeout=ask.timeout, request_id=ask.request)
        except Exception as error:  # noqa: BLE001 - every end of a call is evidence
            return history.end(begun, *_failed(error))
        return history.end(begun, *_succeeded(result))

    def _by_celery(self, ask: Ask, deadline: float) -> PeerResult:
        """As plain Celery does, whose deadlines and patience may differ."""
        wish = {name: value for name, value in ask.arguments().items() if value} if ask.act == "create" else {}
        task = task_of(self._app, names.CREATE_PEER if ask.act == "create" else names.DELETE_PEER)
        sent = task.apply_async(
            kwargs={"gateway": self.gateway, "public_key": ask.key, **wish}, expires=deadline, task_id=ask.request
        )
        return PeerResult.model_validate(sent.get(timeout=ask.timeout))

    async def _call_async(self, gateway: AsyncGateway, ask: Ask) -> Call:
        history = cast("History", self._history)
        begun = _begun(history, ask)
        try:
            if ask.act == "create":
                result = await gateway.create_peer(
                    ask.key, **ask.arguments(), timeout=ask.timeout, request_id=ask.request, bulk=ask.bulk
                )
            else:
                result = await gateway.delete_peer(ask.key, timeout=ask.timeout, request_id=ask.request)
        except Exception as error:  # noqa: BLE001 - every end of a call is evidence
            return history.end(begun, *_failed(error))
        return history.end(begun, *_succeeded(result))


def _begun(history: History, ask: Ask) -> tuple[Call, float]:
    return history.begin(
        ask.act,
        ask.key,
        ask.request,
        ask.timeout,
        ask.wish,
        ask.ttl,
        pinned=ask.pinned,
        deadline=ask.deadline,
        secret=ask.secret,
    )


def _succeeded(result: PeerResult) -> tuple[End, str, Sequence[str], str, int | None, int | None]:
    return "ok", result.outcome, result.allowed_ips, "", result.created_at, result.expires_at


def _failed(error: Exception) -> tuple[End, str, Sequence[str], str]:
    if isinstance(error, OutcomeUnknown):
        return "unknown", error.code, (), error.message
    if isinstance(error, DEFINITE):
        return "refused", error.code, (), error.message
    how = error.code if isinstance(error, PeerlaneError) else type(error).__name__
    return "broken", how, (), f"{type(error).__name__}: {error}"


def skew(clock: Path) -> None:
    """From now on this process' wall clock is off by as many seconds as the file says."""
    real = time.time
    time.time = lambda: real() + float(clock.read_text() or 0)


def main() -> None:
    """Take orders until standard input ends."""
    if "PEERLANE_TEST_CLOCK" in os.environ:
        skew(Path(os.environ["PEERLANE_TEST_CLOCK"]))
    parser = argparse.ArgumentParser()
    for name in ("--redis", "--gateway", "--name"):
        parser.add_argument(name, required=True)
    parser.add_argument("--histories", type=Path, required=True)
    options = parser.parse_args()
    callers = Callers(options.redis, options.gateway, options.histories, options.name)
    answer({"ready": True})
    for line in sys.stdin:
        answer(callers.obey(json.loads(line)))


if __name__ == "__main__":
    main()
