"""Peer table, plans, address pools, drift. Pure: no I/O, no clock."""
