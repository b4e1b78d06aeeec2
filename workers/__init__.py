"""What runs on a gateway: the writer, its plan, the data planes, the store, recovery, the command line."""

if __name__ != "peerlane.workers":
    raise ImportError(f"import peerlane.workers: {__name__} would be a second copy of it")
