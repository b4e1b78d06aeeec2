"""For Celery's command line: ``celery -A peerlane beat``, ``celery -A peerlane flower``."""

import sys

from peerlane.config.celery.app import app

__all__ = ["app"]

# Celery has loaded its plug-ins by now, Flower among them if it is installed; no other program has.
if "flower.command" in sys.modules:
    from peerlane.tasks.flower.application import install

    install()
