"""Keeps the pauses of Python's garbage collector short, however many peers a process holds.

A full collection looks at every object: with 100,000 peers it stops the writer for a tenth of a second. Peers' records
have no reference cycles, so they need not be looked at again: they are put aside (``gc.freeze``) a few at a time, each
time after a collection of what has come since the last time.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

#: New peers after which they are put aside: collecting as many takes some milliseconds.
EVERY = 2_000


@contextmanager
def loading() -> Generator[None]:
    """Collect nothing meanwhile; put aside afterwards whatever there is then."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
    gc.freeze()


def put_aside() -> None:
    """Put aside what has come since the last time."""
    gc.collect()
    gc.freeze()
