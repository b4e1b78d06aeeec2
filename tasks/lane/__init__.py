"""Sends and awaits one request, or many; the Celery tasks. Does not depend on who sends a request or why."""
