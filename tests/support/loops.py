"""An asyncio program run so that a connection it leaves open fails the test that left it, not some later one."""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_and_leave_nothing(program: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """What the program returns. AssertionError if it has not closed every connection by then."""
    selector = selectors.DefaultSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        result = runner.run(program())
        left = [key.data for key in selector.get_map().values() if _is_open(key.fd)]
        assert len(left) == 1, f"beside the loop's own there are connections left: {left}"
    # What was dropped unclosed tells of it when it is collected: a warning, and so a failure.
    gc.collect()
    return result


def _is_open(descriptor: int) -> bool:
    """Whether it still is. Python 3.13.0 goes on watching one that is closed, if it was written to as it was reset."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
