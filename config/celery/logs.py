"""The logs of Celery's workers and beat, in the format of the settings (``config.logs``)."""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import signals
from celery.utils.log import LoggingProxy

from peerlane.config.logs import configure
from peerlane.config.settings import Settings


class CeleryLogs:
    """JSON logs of a Celery worker or beat; text logs are Celery's. The app keeps it: signals hold it weakly."""

    def __init__(self, settings: Settings, process: str) -> None:
        self._settings, self._process = settings, process
        if settings.log_format == "json":
            signals.setup_logging.connect(self._set_up)
        elif settings.log_level is not None:
            signals.after_setup_logger.connect(self._set_level)

    def _set_up(self, loglevel: int | None = None, **_: Any) -> None:
        """In Celery's place. What is printed becomes lines too; what Celery says past all streams is dropped."""
        chosen = self._settings.log_level
        configure(self._settings, self._process, chosen or loglevel)
        printed: Any = LoggingProxy(logging.getLogger("celery.redirected"), logging.WARNING)
        sys.stdout = sys.stderr = sys.__stdout__ = printed  # type: ignore[misc] - Celery says there that it ends

    def _set_level(self, logger: logging.Logger, **_: Any) -> None:
        logger.setLevel(str(self._settings.log_level).upper())
