"""For Celery's command line: ``celery -A peerlane beat``, ``celery -A peerlane flower``."""

from peerlane.config.celery_app import app

__all__ = ["app"]
