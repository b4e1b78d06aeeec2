"""One request as a writer has it: delivery, outcome, and what is measured of it. Decides nothing, does no I/O."""
