"""Carries requests out from plan to commit, alone or in a group; writes the heartbeat. Imports no Celery or kombu."""
