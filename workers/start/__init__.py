"""The start of a writer, and of a lost device: take over, register, load, make the device equal to Redis."""
