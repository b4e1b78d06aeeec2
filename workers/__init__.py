"""What runs on a gateway: the writer, its plan, the data planes, the store, recovery, the command line."""
