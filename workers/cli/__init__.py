"""Commands that run on a gateway."""
