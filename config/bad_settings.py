"""The error for bad settings. Loads neither pydantic nor Celery, because the command line imports it at every start."""

from __future__ import annotations

import click


class BadSettings(click.ClickException, ValueError):
    """A setting is missing or malformed; the message names it and never shows a secret.

    A ClickException, so that `celery -A …` too ends with this sentence instead of a traceback.
    """

    exit_code = 2
