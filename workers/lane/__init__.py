"""How Celery and kombu take, refuse and acknowledge a message. No plan, no device."""
