"""The gateway's host: device lock, privileges, supervisor, messages to the service manager. Does not use Redis."""
