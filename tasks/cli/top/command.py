"""``peerlane top``: shows the fleet repeatedly, the most urgent gateway first."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click
from rich.console import RenderableType
from rich.live import Live

from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.cli.output import UNFOLDED, Output, as_document
from peerlane.tasks.cli.parameters import GatewayName, Seconds
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.cli.top.screen import frame
from peerlane.tasks.errors import OutcomeUnknown, StorageError
from peerlane.tasks.status.fleet_snapshot import FleetReader
from peerlane.tasks.status.rates import FleetRates, Row


@click.command(cls=Command)
@click.argument("names", metavar="[NAME]...", nargs=-1, type=GatewayName())
@click.option(
    "--interval",
    type=Seconds(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="One table, of two looks: rates take both.")
@pass_session
def top(session: Session, names: tuple[str, ...], interval: float, *, once: bool) -> None:
    """Watch the fleet, or some gateways, until Ctrl-C; those in trouble stand first.

    Through a pipe it prints one table after the other, with --json one document per line. Rates are of the last
    interval; those of traffic (rx from peers, tx to them) of the observer's last one, PEERLANE_OBSERVE_EVERY.
    """
    watch = Watch(session, names)
    if once:
        watch.look()
        time.sleep(interval)
        watch.look()
        if watch.away is not None:
            raise watch.away
        _show(session.output, watch)
        return
    try:
        with _drawn(session.output) as draw:
            while True:
                began = time.monotonic()
                watch.look()
                draw(watch)
                time.sleep(max(0.0, began + interval - time.monotonic()))
    except KeyboardInterrupt:
        return  # the way to end it


class Watch:
    """The rows of the last successful look, and the error since."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self._session = session
        self._reader = FleetReader(lanes_of(session.app).redis, names)
        self._rates = FleetRates()
        self.rows: list[Row] = []
        #: Redis' clock at that look, in seconds; 0 before the first.
        self.at = 0.0
        #: Why the last look failed; None if it did not.
        self.away: OutcomeUnknown | StorageError | None = None
        self._looked = time.monotonic()

    def look(self) -> None:
        """Look now. Raises Unavailable if a named gateway is not registered."""
        try:
            snapshot = self._reader.read()
        except (OutcomeUnknown, StorageError) as error:
            self.away = error
            return
        self.rows, self.at, self.away = self._rates.rows(snapshot), snapshot.at, None
        self._looked = time.monotonic()

    @property
    def trouble(self) -> str | None:
        """The error since the last look, for people."""
        if self.away is None:
            return None
        if not self.at:
            return f"{self.away.message}; {self._session.redis_named()}"
        return f"{self.away.message}; this is {time.monotonic() - self._looked:.0f} s old"

    def frame(self, width: int, height: int | None = None) -> RenderableType:
        """The table and the lines above it."""
        return frame(self.rows, at=self.at or time.time(), width=width, height=height, trouble=self.trouble)

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        if self.away is not None:
            return {"error": as_document(self.away)}
        return {"at": round(self.at, 3), "gateways": [row.as_dict() for row in self.rows]}


@contextmanager
def _drawn(output: Output) -> Generator[Callable[[Watch], None]]:
    """How to show each look: on a screen of its own that goes away, or one below the other where there is none."""
    console = output.out
    if output.json or not console.is_terminal or console.is_dumb_terminal:
        yield lambda watch: _show(output, watch)
        return
    with _ending_in_order(), Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda watch: live.update(watch.frame(console.width, console.height), refresh=True)


def _show(output: Output, watch: Watch) -> None:
    if output.json:
        # One line for each, on a terminal too: there are many.
        output.document(watch.document(), in_one_line=True)
    else:
        output.show(watch.frame(output.out.width if output.out.is_terminal else UNFOLDED))
    sys.stdout.flush()


@contextmanager
def _ending_in_order() -> Generator[None]:
    """Let SIGTERM and SIGHUP unwind the program: a terminal is left as it was found."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
