"""Sends and awaits one request, or many; the Celery tasks. Does not know who asks, or why."""
