"""One request from plan to commit; start, takeover, heartbeat. No Celery, no kombu."""
