"""The client, the Celery tasks, the errors and the operators' commands: what API hosts and operators use.

Needs neither pyroute2 nor root. Imports config, never workers. ``peerlane`` exports the public names.
"""

if __name__ != "peerlane.tasks":
    raise ImportError(f"import peerlane.tasks: {__name__} would be a second copy of it")
