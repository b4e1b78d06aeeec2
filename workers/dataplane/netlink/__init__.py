"""Messages to and from the kernel, packed by hand: framing, one socket, WireGuard, routes. Knows no gateway."""
