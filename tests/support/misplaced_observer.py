"""An observer whose gateway's writer is on another host while the file of MISPLACED_OBSERVER exists.

The memory data plane has no device of a host's own, so that its observer never finds its writer elsewhere by itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from peerlane.workers.observer import ObserverApp, ObserverService


class MisplacedObserver(ObserverService):
    """SimulatedGateway by a file where the writer is, instead of by the gateway's hash."""

    def _place(self, now: int, holder: Sequence[bytes | None]) -> None:
        self._elsewhere = "another host" if Path(os.environ["MISPLACED_OBSERVER"]).exists() else None
        self.handler.elsewhere = self._elsewhere


class MisplacedApp(ObserverApp):
    """Makes one."""

    def make_service(self) -> ObserverService:
        return MisplacedObserver(self.settings, redis=self.shared_redis.client)


app = MisplacedApp()
