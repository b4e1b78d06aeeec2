"""Celery's remote control, switched off on the asking side as well: no process of Peerlane listens to it.

Whoever can publish on its channel could shut workers down, so workers do not subscribe
(``worker_enable_remote_control``). What still asks, Flower above all, is answered here at once that nobody is there,
instead of after a broadcast; so its Redis user needs no right to broadcast.
"""

from __future__ import annotations

from typing import Any

from celery.app.control import Control


class NoControl(Control):
    """Sends nothing. ``inspect`` finds no worker."""

    def broadcast(self, command: str, *args: Any, reply: bool = False, **options: Any) -> Any:
        """No worker would hear it."""
        del command, args, options
        return [] if reply else None
