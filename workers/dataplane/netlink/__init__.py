"""Peerlane's own netlink codec and sockets: framing, WireGuard, routes. Knows no gateway."""
