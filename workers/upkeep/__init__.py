"""The observer's work: activity, sweeps, reconciliations. Never writes to the device."""
