"""The timeout of a call in seconds, from a number, a timedelta or a default."""

from __future__ import annotations

import math
from datetime import timedelta

from peerlane.tasks.errors import Invalid

#: What callers may give as a timeout.
Timeout = float | timedelta


def seconds_of(*timeouts: Timeout | None) -> float:
    """The first of these that is set, in seconds.

    0 is refused: a call waits for its outcome, and cancels what it has not heard of. Who does not want to wait sends
    with ``create_peer.apply_async``.

    Raises:
        Invalid: it is no number of seconds above 0.
    """
    timeout = next(each for each in timeouts if each is not None)
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance] - callers are not all typed
        raise Invalid("timeout: a number of seconds above 0, or a timedelta; apply_async sends without waiting")
    return float(seconds)
