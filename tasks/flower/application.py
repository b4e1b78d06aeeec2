"""Flower's application with the fleet added: more pages, workers read from Redis, an end on SIGTERM.

Flower 2.2 has no plug-ins. This module uses its application class, extended by tornado's own means (``add_handlers``,
the setting ``template_loader``), ``inspector.workers``, ``events.state`` and the option ``format_task``.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import flower.command
from flower.app import Flower
from flower.urls import settings as flower_settings
from tornado.ioloop import PeriodicCallback
from tornado.template import Loader, Template

from peerlane.config import logs
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.url import shown_url
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.flower.fleet_view import EVERY, FleetView
from peerlane.tasks.flower.pages import handlers
from peerlane.tasks.flower.task_format import formatted

_TEMPLATES = Path(__file__).parent / "templates"
#: Where Flower's navigation bar takes one more entry, and what follows it on every page.
_ENTRIES, _END = '<ul class="app-nav navbar-nav">', "</nav>"

_Flower: Any = Flower  # it carries no types


def install() -> None:
    """Make ``celery flower`` start this application. Flower's command looks up its class when it runs."""
    flower.command.Flower = FleetFlower  # pyright: ignore[reportAttributeAccessIssue] - untyped


class FleetFlower(_Flower):
    """Flower for a Peerlane app; for any other app it is plain Flower."""

    fleet: FleetView | None = None

    def __init__(self, options: Any = None, capp: Any = None, **settings: Any) -> None:
        super().__init__(options=options, capp=capp, **settings)
        if not isinstance(capp, PeerlaneApp):
            return
        if capp.settings.log_format == "json":
            # Instead of tornado's handler, which is there by now; Flower's --logging has set the level.
            logs.configure(capp.settings, "flower", capp.settings.log_level or logging.getLogger().level)
        elif capp.settings.log_level is not None:
            logging.getLogger().setLevel(capp.settings.log_level.upper())
        self.fleet = FleetView(lanes_of(capp).redis)
        self.add_handlers(".*", handlers(self.options.url_prefix or ""))
        self.settings["template_loader"] = FleetLoader(str(flower_settings["template_path"]))
        if self.options.format_task is None:
            self.options.format_task = formatted
        self._looks = PeriodicCallback(self._look, EVERY * 1000)

    @property
    def broker_uri(self) -> str:
        """Redis' address for the broker page, with the password hidden."""
        if self.fleet is None:
            return cast("str", super().broker_uri)
        return shown_url(self.capp.settings.redis_url.get_secret_value())

    def start(self) -> None:
        """Serve until the loop ends."""
        # Its own handler raises SystemExit wherever the main thread happens to be. Within a request tornado takes
        # that for the request's failure and goes on. The loop calls back between requests.
        self.io_loop.asyncio_loop.add_signal_handler(signal.SIGTERM, sys.exit, 0)
        if self.fleet is not None:
            self.io_loop.add_callback(self._look)
            self._looks.start()
        super().start()

    def update_workers(self, workername: str | None = None) -> Any:
        """Flower's method to ask workers. Here one look at Redis updates all of them."""
        if self.fleet is None:
            return super().update_workers(workername)  # pyright: ignore[reportUnknownVariableType] - untyped
        return asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        fleet = cast("FleetView", self.fleet)
        if not await self.io_loop.run_in_executor(None, fleet.look) or fleet.last is None:
            return
        workers = self.inspector.workers
        for name in workers.keys() - fleet.last.workers.keys():
            del workers[name]
        for name, answers in fleet.last.workers.items():
            workers[name] = {**answers, "timestamp": time.time()}
        self._forget_removed(fleet.last.workers)

    def _forget_removed(self, known: dict[str, Any]) -> None:
        """Drop offline workers of removed gateways from Flower's list, and those of gateways that have moved."""
        state = self.events.state
        gone = {name for name, worker in state.workers.items() if name not in known and not worker.alive}
        for name in gone:
            state.workers.pop(name, None)
            state.counter.pop(name, None)
        if gone:
            state.metrics.remove_workers(gone)


class FleetLoader(Loader):
    """Flower's templates and Peerlane's. Adds an entry for gateways and a line of trouble to the navigation bar."""

    def __init__(self, root_directory: str) -> None:
        """``root_directory`` is Flower's. Raises RuntimeError if its navigation bar has another form."""
        super().__init__(root_directory)
        bar = (Path(root_directory) / "navbar.html").read_text(encoding="utf-8").rstrip()
        if _ENTRIES not in bar or not bar.endswith(_END):
            raise RuntimeError("this release of Flower has another navigation bar")
        entry, trouble = ((_TEMPLATES / part).read_text() for part in ("navbar_entry.html", "trouble.html"))
        self._bar = bar.replace(_ENTRIES, _ENTRIES + entry, 1) + trouble

    def _create_template(self, name: str) -> Template:
        if name == "navbar.html":
            text = self._bar
        else:
            own = _TEMPLATES / name
            text = (own if own.exists() else Path(self.root) / name).read_text(encoding="utf-8")
        return Template(text, name=name, loader=self)
