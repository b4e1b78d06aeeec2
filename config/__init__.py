"""What every process of Peerlane agrees on: settings, names, the Celery app, routing, the schedule.

Imports nothing of ours; both other packages import this one.
"""

if __name__ != "peerlane.config":
    raise ImportError(f"import peerlane.config: {__name__} would be a second copy of it")
