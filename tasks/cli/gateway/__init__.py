"""``peerlane gateway …``. No Redis command of its own."""
