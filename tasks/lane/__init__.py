"""Sends, admits, awaits and cancels one request; the Celery tasks. Does not know who asks, or why."""
