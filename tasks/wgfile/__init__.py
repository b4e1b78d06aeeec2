"""Reads and writes the files of wg and wg-quick. Does not use Redis."""
