"""Who waits for a request whose id is known to several callers of this process: only the last to leave cancels it."""

from __future__ import annotations

import threading
from collections import Counter


class Wait:
    """One caller's wait for a request."""

    def __init__(self, waits: Waits, request_id: str) -> None:
        self._waits, self._request_id = waits, request_id
        self._left = False

    def leave(self) -> bool:
        """Stop waiting; returns whether no caller waits for the request now. False where this was called before."""
        if self._left:
            return False
        self._left = True
        return self._waits.left(self._request_id)


class Waits:
    """The callers of one process that wait, counted by request. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()

    def enter(self, request_id: str) -> Wait:
        """Count in a caller that begins to wait; it has to ``leave``."""
        with self._lock:
            self._waiting[request_id] += 1
        return Wait(self, request_id)

    def is_awaited(self, request_id: str) -> bool:
        """Whether anybody waits for the request."""
        return request_id in self._waiting

    def left(self, request_id: str) -> bool:
        """Count out one caller; returns whether none is left."""
        with self._lock:
            self._waiting[request_id] -= 1
            if self._waiting[request_id] > 0:
                return False
            del self._waiting[request_id]
            return True
