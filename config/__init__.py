"""Settings, names, the Celery app, the schedule and Redis connections: what all processes of Peerlane share.

Imports neither tasks nor workers; both import this package.
"""

if __name__ != "peerlane.config":
    raise ImportError(f"import peerlane.config: {__name__} would be a second copy of it")
