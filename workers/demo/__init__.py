"""``peerlane demo``: its Redis server, processes and figures. Only the command line imports it."""
