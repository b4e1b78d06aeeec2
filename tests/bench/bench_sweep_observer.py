"""The observer that ``bench_sweep --slices`` starts: its slices are as long as a file says, at each moment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench_sweep import SIZE_FILE

from peerlane.workers.observer import app
from peerlane.workers.upkeep import sweeper as sweeping
from peerlane.workers.upkeep.sweep_policy import StalePeer

__all__ = ["app"]

_as_always = sweeping._requests  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a bench varies what is no setting


def _requests(victims: Sequence[StalePeer], began: float) -> Iterator[dict[str, Any]]:
    start = 0
    while start < len(victims):
        sweeping.SLICE = int(Path(os.environ[SIZE_FILE]).read_text())
        part = victims[start : start + sweeping.SLICE]
        request = next(iter(_as_always(part, began)), None)
        if request is None:
            return
        yield request
        start += len(part)


sweeping._requests = _requests  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - likewise
