"""Sends many requests for the demo, as a program would, and measures what their callers see."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.cli.console import progress_bar
from peerlane.tasks.cli.output import Output
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane.pipeline import send_pipelined
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.model import PeerResult

#: Requests outstanding at once when many are made.
WINDOW = 32
#: Seconds that a request of the demo may take on a slow machine.
PATIENCE = 60.0


class DemoFailed(PeerlaneError):
    """A step of the demo did not have its expected result."""

    code = "demo_failed"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of the demo for one peer."""

    gateway: str
    public_key: str
    #: Further arguments of its create.
    wish: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of many requests, as their caller sees them. Times are in seconds."""

    count: int
    seconds: float
    p50: float
    p99: float

    @classmethod
    def of(cls, waits: Sequence[float], seconds: float) -> Figures:
        """From each request's wait and the total time. ``waits`` must not be empty."""
        ordered = sorted(waits)
        return cls(
            len(ordered), seconds, ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        )

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.count / self.seconds

    def as_dict(self) -> dict[str, float]:
        """For programs."""
        return {
            "count": self.count,
            "seconds": round(self.seconds, 3),
            "per_second": round(self.rate, 1),
            "p50_ms": round(self.p50 * 1000, 2),
            "p99_ms": round(self.p99 * 1000, 2),
        }


def measured(
    app: PeerlaneApp,
    task_name: str,
    asks: Sequence[Ask],
    *,
    title: str,
    output: Output,
    check: Callable[[], None],
    alone: int = 0,
) -> tuple[Figures | None, Figures]:
    """Send all, the first ``alone`` one at a time; returns the figures of both parts. ``check`` sees each answer.

    Raises:
        DemoFailed: one was refused.
    """
    task = task_of(app, task_name)

    def send(ask: Ask) -> LaneResult:
        arguments = {"gateway": ask.gateway, "public_key": ask.public_key, **ask.wish}
        return task.apply_async(kwargs=arguments, expires=PATIENCE)

    with progress_bar(output) as bar:
        row = bar.add_task(title, total=len(asks), rate="")
        figures: list[Figures] = []
        for part, size in ((asks[:alone], 1), (asks[alone:], WINDOW)):
            waits: list[float] = []
            began = time.monotonic()
            for answer in send_pipelined(send, part, timeout=PATIENCE, size=size):
                check()
                if not isinstance(answer.outcome, PeerResult):
                    raise DemoFailed(f"{title} on {answer.wish.gateway}: {answer.outcome}")
                waits.append(answer.seconds)
                bar.update(row, advance=1, rate=f"{len(waits) / (time.monotonic() - began):,.0f}/s")
            if waits:
                figures.append(Figures.of(waits, time.monotonic() - began))
    return (figures[0] if len(figures) > 1 else None), figures[-1]


def figures_table(verb: str, first: Figures | None, many: Figures) -> Table:
    """A table of figures for people."""
    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    table.add_column("")
    for title in ("peers", "per second", "p50", "p99"):
        table.add_column(title, justify="right")
    for title, figures in ((f"{verb}, one at a time", first), (f"{verb}, {WINDOW} at a time", many)):
        if figures is not None:
            times = (f"{figures.p50 * 1000:.1f} ms", f"{figures.p99 * 1000:.1f} ms")
            table.add_row(title, f"{figures.count:,}", Text(f"{figures.rate:,.0f} peers/s", "bold green"), *times)
    return table
