"""``peerlane gateway …``. Sends no Redis commands of its own."""
