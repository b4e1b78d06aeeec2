"""The session of a client-side command: its output, settings, Celery app and gateways."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from peerlane.tasks.cli.output import Output

if TYPE_CHECKING:  # Celery, Redis and pydantic are loaded by the commands that need them
    from peerlane.config.celery.app import PeerlaneApp
    from peerlane.config.settings import Settings
    from peerlane.tasks.client.gateway import Gateway

_URL_VARIABLE = "PEERLANE_REDIS_URL"


class Session:
    """One run of the command line. Reads settings, and connects to Redis, at the first use."""

    def __init__(self, output: Output) -> None:
        self.output = output
        #: What the command line says, over what variables and the settings file say.
        self.overrides: dict[str, Any] = {}

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raises BadSettings."""
        from peerlane.config.settings import read

        return read(**self.overrides)

    @cached_property
    def app(self) -> PeerlaneApp:
        """The Celery app that sends this run's requests."""
        from peerlane.config.celery.app import PeerlaneApp

        return PeerlaneApp(self.settings)

    def gateway(self, name: str) -> Gateway:
        """A gateway, as a client sees it."""
        from peerlane.tasks.client.gateway import Gateway

        return Gateway(name, app=self.app)

    def name_redis(self) -> None:
        """Tell people which Redis was meant, and what names it: below an error of one that cannot be used."""
        if "settings" not in self.__dict__:  # nothing was asked of it
            return
        from peerlane.config.redis.url import shown_url

        url = shown_url(self.settings.redis_url.get_secret_value())
        if "redis_url" in self.overrides:
            source = "as --redis says"
        elif any(name.upper() == _URL_VARIABLE for name in os.environ):
            source = f"as {_URL_VARIABLE} says"
        elif "redis_url" in self.settings.model_fields_set:
            source = "as the settings file says"
        else:
            source = f"the default; {_URL_VARIABLE} or --redis names another"
        self.output.note(f"Redis is {url}, {source}")

    def start_log(self, process: str, level: str | None = None) -> None:
        """Log in the format of the settings, for a command that keeps running; its other output too."""
        from peerlane.config import logs

        logs.configure(self.settings, process, level)
        if self.settings.log_format == "json":
            self.output.log = logging.getLogger("peerlane")

    def close(self) -> None:
        """Close every connection that was opened."""
        app = self.__dict__.pop("app", None)
        if app is not None:
            from peerlane.tasks.admission.lanes import close_app

            close_app(app)


pass_session = click.make_pass_decorator(Session)
