"""Text of wg and wg-quick, in and out. No Redis."""
