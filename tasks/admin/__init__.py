"""What operators do to one gateway: import, backup, remove, ACL, poison, maintenance. No click, no rich."""
