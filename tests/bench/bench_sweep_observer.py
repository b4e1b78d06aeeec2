"""The observer that ``bench_sweep --slices`` starts: its slices are as long as a file says, at each moment."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench_sweep import SIZE_FILE

from peerlane.tasks.wire.bulk import Reason
from peerlane.workers.observer import app
from peerlane.workers.upkeep import sweeper as sweeping
from peerlane.workers.upkeep.lean_mappings import StalePeer

__all__ = ["app"]

_as_always = sweeping._requests  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a bench varies what is no setting


def _requests(slices: Iterable[Sequence[StalePeer]], asked: deque[dict[str, Reason]]) -> Iterator[dict[str, Any]]:
    sweeping.SLICE = _size()
    for request in _as_always(slices, asked):
        yield request
        sweeping.SLICE = _size()


def _size() -> int:
    return int(Path(os.environ[SIZE_FILE]).read_text())


sweeping._requests = _requests  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - likewise
