"""Requests, outcomes and records as they cross the queue, and the table of tasks. Pure: no Redis, no Celery."""
