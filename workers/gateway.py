"""The composition root of a gateway: settings in, a writer out; ``celery -A peerlane.workers.gateway worker``."""

from __future__ import annotations

from typing import cast

from peerlane.config.celery_app import PeerlaneApp
from peerlane.config.settings import Settings
from peerlane.tasks.lane.tasks import register
from peerlane.workers.lane.result_backend import CommitBackend
from peerlane.workers.lane.taken import LaneWriter
from peerlane.workers.service import GatewayService
from peerlane.workers.writer.recovery import Progress
from peerlane.workers.writer.writer import Writer


class GatewayApp(PeerlaneApp):
    """The Celery app of a gateway: its worker is the writer."""

    def __init__(self, settings: Settings | None = None, *, progress: Progress | None = None) -> None:
        super().__init__(settings, "writer")
        self._progress = progress

    def make_service(self) -> GatewayService:
        """The gateway's service; not started yet."""
        return GatewayService(self.settings, progress=self._progress)

    def bind(self, service: GatewayService) -> None:
        """Give this app's tasks and result backend the writer of a started service."""
        writer = cast("Writer", service.writer)
        cast("CommitBackend", self.backend).gateway = service.name
        for task in register(self).values():
            task.Strategy = "peerlane.workers.lane.strategy:LaneStrategy"
            task.writer = LaneWriter(writer)


app = GatewayApp()
