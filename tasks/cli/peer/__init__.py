"""``peerlane peer …``. No Redis command of its own."""
