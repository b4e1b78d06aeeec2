"""Consoles and progress bars for people. Loads rich, which a command for programs, or one that only logs, spares."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from peerlane.tasks.cli.output import UNFOLDED, Output
from peerlane.tasks.cli.stdio import UNKNOWN, without_surrogates

#: What moves a cursor or changes colours, and what writes text backwards or begins a line.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class PlainConsole(Console):
    """A console on which foreign text cannot move the cursor, change colours or the title, or run backwards."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(without_surrogates(_CONTROL.sub(UNKNOWN, segment.text)), segment.style)


def plain_console(*, stderr: bool) -> Console:
    """A console on a standard stream; lines that go to no terminal are not folded."""
    stream = sys.stderr if stderr else sys.stdout
    return PlainConsole(stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else UNFOLDED)


def progress_bar(output: Output) -> Progress:
    """A progress bar on standard error, if that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=output.err,
        disable=not output.err.is_terminal,
        expand=True,
        transient=True,
    )
