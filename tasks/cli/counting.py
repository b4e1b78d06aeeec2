"""Counts the items of an iteration, with a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import Progress, TaskID

from peerlane.tasks.cli.console import progress_bar
from peerlane.tasks.cli.output import Output

_T = TypeVar("_T")

#: Items after which the bar is updated.
_STEP = 500


class Counting:
    """Yields the items that it is called with, and counts them."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task
        #: Items counted so far.
        self.count = 0

    def __call__(self, items: Iterable[_T]) -> Iterator[_T]:
        for item in items:
            self.count += 1
            if self.count % _STEP == 0:
                self._bar.update(self._task, completed=self.count)
            yield item


@contextmanager
def counting(output: Output, title: str, total: int | None) -> Generator[Counting]:
    """Within the block, a bar shows how many of about ``total`` items were counted."""
    with progress_bar(output) as bar:
        yield Counting(bar, bar.add_task(title, total=total, rate=""))
