"""What a client-side command works with: output, settings, one Celery app, gateways."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import click

from peerlane.config.celery_app import PeerlaneApp
from peerlane.config.settings import Settings, read
from peerlane.tasks.cli.output import Output
from peerlane.tasks.client.gateway import Gateway
from peerlane.tasks.lane.admission import close_app


class Session:
    """One run of the command line. Settings are read, and Redis is asked, when first needed."""

    def __init__(self, output: Output) -> None:
        self.output = output
        #: What the command line says, over what variables and the settings file say.
        self.overrides: dict[str, Any] = {}

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raises BadSettings."""
        return read(**self.overrides)

    @cached_property
    def app(self) -> PeerlaneApp:
        """The Celery app that sends this run's requests."""
        return PeerlaneApp(self.settings)

    def gateway(self, name: str) -> Gateway:
        """A gateway, as a client sees it."""
        return Gateway(name, app=self.app)

    def close(self) -> None:
        """Close every connection that was opened."""
        app = self.__dict__.pop("app", None)
        if app is not None:
            close_app(app)


pass_session = click.make_pass_decorator(Session)
