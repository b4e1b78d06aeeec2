"""``peerlane demo``: a server, processes, figures. Only the command line imports it."""
