"""A request in the writer: its delivery, its outcome, its measurements. Decides nothing, does no I/O."""
