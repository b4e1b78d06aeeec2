"""The host: lock, privileges, supervisor. No Redis."""
