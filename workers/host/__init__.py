"""The host: lock, privileges, supervisor, what the service manager is told. No Redis."""
