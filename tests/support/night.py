"""A whole site for playing events: Redis on a disk that can fill, ``gateway run``, beat, Flower, exporter, Prometheus.

Each event is watched in every place that an operator has; after how many seconds it shows there is noted. Spans in
rules are cut short, but with PEERLANE_TEST_NIGHT=field, which gives the figures of docs/runbooks.md.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from commands import peerlane
from flowers import flower
from gateways import GatewayProcess, close
from observers import Process, beat
from prometheus import RULES, Prometheus, hastened
from redis.exceptions import RedisError
from scraping import ExporterProcess
from servers import RedisServer
from small_disk import SmallDisk
from waiting import eventually

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read

FIELD = os.environ.get("PEERLANE_TEST_NIGHT") == "field"
#: Seconds within which every place has to show an event.
WITHIN = 900.0 if FIELD else 60.0
CAP = 20
#: Spans in rules that are minutes in the field.
SHORT = {
    "PeerlaneObserverAway": {"> 60": "> 16"},
    "PeerlaneWriterRestarts": {"15m": "1m"},
}

#: What goes on firing for a while: they look back over minutes or hours.
LASTING = {
    "PeerlaneWriterRestarts",
    *("PeerlaneCreateLatencyBurnFast", "PeerlaneCreateLatencyBurnSlow"),
}

View = Callable[[], object]


class Manager:
    """Starts Redis again whenever it has ended, as ``restart: unless-stopped`` does: at once, and ever later."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._manage, daemon=True)

    def go(self) -> None:
        """Manage it from now on."""
        self._thread.start()

    def _manage(self) -> None:
        pause = 0.1
        while not self._over.wait(pause):
            if not self._server.running:
                self._server.stop()
                pause = min(60.0, 2 * pause)
                with suppress(AssertionError):  # it has ended again
                    self._server.start()

    def stop(self) -> None:
        """Leave it running, and alone."""
        self._over.set()
        self._thread.join()
        if not self._server.running:
            self._server.stop()
            self._server.start()


class Night:
    """The site, and how each place shows it."""

    def __init__(self, directory: Path, redis_directory: Path, stack: ExitStack) -> None:
        data = redis_directory / "data"
        data.mkdir()
        self.disk = SmallDisk(data)
        stack.callback(self.disk.close)
        self.server = RedisServer(redis_directory, prefix=self.disk.prefix, dir=str(data))
        stack.callback(self.server.stop)
        self.server.start()
        self.manager = Manager(self.server)
        self.failpoints = directory / "failpoints"
        self.failpoints.touch()
        self.gateway = GatewayProcess(
            "iad",
            self.server.url,
            directory,
            dataplane="memory",
            lane_cap=CAP,
            sweep_every="60" if FIELD else "2",
            test_failpoints=self.failpoints,
        )
        self.gateway.program = ["-m", "peerlane.workers.cli", "gateway", "run", "iad", "--loglevel"]
        self.gateway.may_show_tracebacks = True
        stack.callback(self.gateway.finish)
        self.gateway.start()
        self._beat_log, self.beat = directory / "beat.log", None
        stack.callback(self.stop_beat)
        self.start_beat()
        self.page = stack.enter_context(flower(self.server.url, directory))
        self.exporter = ExporterProcess(self.server.url)
        stack.callback(self.exporter.stop)
        rules = RULES.read_text() if FIELD else hastened(SHORT)
        often = {"scraped": "15s", "evaluated": "15s"} if FIELD else {}
        self.prometheus = Prometheus(directory, self.exporter.address, rules, **often)
        stack.callback(self.prometheus.stop)
        self.app = PeerlaneApp(read(redis_url=self.server.url))
        stack.callback(close, self.app)
        #: Event → place → seconds until it showed; None where it never did.
        self.noted: dict[str, dict[str, float | None]] = {}

    def start_beat(self) -> None:
        self.beat: Process | None = beat(self.server.url, self._beat_log)

    def stop_beat(self) -> None:
        if self.beat is not None:
            self.beat.stop()
        self.beat = None

    def writer_pid(self) -> int:
        return int(str(self.server.redis.hget(names.gateway_key("iad"), "holder_pid")))

    def observer_pid(self) -> int:
        return int(str(self.server.redis.hget(names.observer_key("iad"), "pid")))

    # What an operator asks

    def flower(self) -> Mapping[str, Any]:
        """The gateway's row on Flower's page, and what Flower says of itself."""
        document: dict[str, Any] = json.loads(self.page.text("/gateways?json=1"))
        return {**_first(document), "trouble": document["trouble"]}

    def page_says(self, sentence: str, path: str = "/gateways") -> View:
        return lambda: sentence in self.page.text(path)

    def ask(self, *words: str) -> dict[str, Any]:
        """A command's document, whatever its status."""
        return json.loads(peerlane(*words, "--json", redis=self.server.url).stdout.splitlines()[-1])

    def says(self, sentence: str, *words: str) -> View:
        """Whether people read it in what a command says."""

        def look() -> bool:
            result = peerlane(*words, redis=self.server.url)
            return sentence in " ".join((result.stdout + result.stderr).split())

        return look

    def listed(self) -> dict[str, Any]:
        return _first(self.ask("gateway", "list"))

    def top(self) -> dict[str, Any]:
        return _first(self.ask("top", "--once", "--interval", "0.2"))

    def doctor(self) -> str:
        """What it finds wrong."""
        checks = self.ask("doctor")["checks"]
        return " ".join(f"{check['what']}: {check['sentence']}" for check in checks if check["verdict"] != "ok")

    def shown_as(self, state: str) -> dict[str, View]:
        """The views of a gateway's state."""
        return {
            "Flower": lambda: _state(self.flower()) == state,
            "list": lambda: _state(self.listed()) == state,
            "top": lambda: _state(self.top()) == state,
            "doctor": lambda: state in self.doctor() or "no live writer" in self.doctor(),
        }

    def logged(self, sentence: str) -> dict[str, View]:
        """The view of the gateway's log: whether it says so from now on."""
        before = len(self.gateway.log)
        return {"log": lambda: sentence in self.gateway.log[before:]}

    def alert(self, name: str) -> dict[str, View]:
        return {"alert": lambda: name in self.prometheus.firing()}

    # How an event goes

    def watch(self, event: str, views: Mapping[str, View], *, over: View | None = None) -> None:
        """Each view shows the event in time. ``over``: what mends itself is not waited for beyond that."""
        began, seconds = time.monotonic(), dict[str, float | None](dict.fromkeys(views))
        while left := [place for place, second in seconds.items() if second is None]:
            for place in left:
                if _quietly(views[place]):
                    seconds[place] = time.monotonic() - began
            if over is not None and over():
                break
            late = time.monotonic() - began > WITHIN
            assert not late, f"{event}: not shown after {WITHIN:.0f} s by {left}; {self.gateway.log[-3000:]}"
            time.sleep(0.1)
        self.noted[event] = seconds

    def well(self) -> None:
        """All is well again, everywhere."""
        views: dict[str, View] = {
            "Flower": lambda: self.flower().get("state") == "active" and self.page.status("/healthcheck") == 200,
            "list": lambda: self.listed().get("state") == "active",
            "top": lambda: self.top().get("state") == "active",
            "alerts": lambda: not self.prometheus.firing() - LASTING,
        }
        for place, view in views.items():
            eventually(lambda view=view: _quietly(view), f"all being well in {place}", within=WITHIN, every=0.1)

    def table(self) -> Iterator[str]:
        """What was noted, as docs/runbooks.md has it."""
        places = ("Flower", "list", "top", "doctor", "alert", "log")
        yield f"| event | {' | '.join(places)} |"
        yield "|---" * (len(places) + 1) + "|"
        for event, seconds in self.noted.items():
            cells = ("" if place not in seconds else _cell(seconds[place]) for place in places)
            yield f"| {event} | {' | '.join(cells)} |"


@contextmanager
def night(directory: Path, redis_directory: Path) -> Generator[Night]:
    """The site. Its table is printed at the end, for pytest -s."""
    with ExitStack() as stack:
        made = Night(directory, redis_directory, stack)
        eventually(lambda: made.flower().get("state") == "active", "the gateway on Flower's page", within=60)
        eventually(lambda: made.flower().get("observer_silent_for") is not None, "the observer there", within=60)
        made.well()
        try:
            yield made
        finally:
            print("\n" + "\n".join(made.table()))  # noqa: T201 - for pytest -s


def _cell(seconds: float | None) -> str:
    return "not before it was over" if seconds is None else f"{seconds:.0f} s"


def _quietly(view: View) -> bool:
    """Whether it shows; what it asks may be away meanwhile."""
    try:
        return bool(view())
    except (RedisError, OSError, ValueError, IndexError, KeyError):
        return False


def _first(document: Mapping[str, Any]) -> dict[str, Any]:
    """The one gateway of a document; empty where there is none, or an error in its place."""
    gateways: list[dict[str, Any]] = document.get("gateways", [])
    return gateways[0] if gateways else {}


def _state(row: Mapping[str, Any]) -> str:
    return "stopped" if row.get("stopped") else str(row.get("state", ""))
