"""How every process reaches Redis: URL, Sentinels, connections, and what a failure means to an operator."""
