"""The Celery app, its broker, result backend and schedule, as every process uses them."""
