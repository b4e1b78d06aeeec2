"""Operators' work on one gateway: import, backup, removal, ACL, poison, maintenance. Uses neither click nor rich."""
