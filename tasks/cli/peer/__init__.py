"""``peerlane peer …``. Sends no Redis commands of its own."""
