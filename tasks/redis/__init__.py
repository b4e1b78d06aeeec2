"""Access to Redis for the other packages: its clock, pages, kept connections, translated errors. Knows no lane."""
