"""``peerlane top``. No Redis command of its own."""
