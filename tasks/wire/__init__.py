"""Values and records that cross the queue. Pure: no Redis, no Celery."""
