"""One request from plan to commit, alone or in a group; the heartbeat beside it. No Celery, no kombu."""
