"""What API hosts and operators use: the client, the Celery tasks, the errors, the operators' commands.

Needs neither pyroute2 nor root. Imports config, never workers. The public names stand in ``peerlane``.
"""

if __name__ != "peerlane.tasks":
    raise ImportError(f"import peerlane.tasks: {__name__} would be a second copy of it")
