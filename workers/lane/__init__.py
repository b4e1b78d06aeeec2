"""Takes, refuses and acknowledges messages with Celery and kombu. Makes no plans and uses no device."""
