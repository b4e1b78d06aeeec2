"""``peerlane top``. Sends no Redis commands of its own."""
