"""What runs on a gateway: writer, observer, data planes, store, supervisor, their commands, and the demo."""

if __name__ != "peerlane.workers":
    raise ImportError(f"import peerlane.workers: {__name__} would be a second copy of it")
