"""What the observer does: activity, sweep, reconcile. Never writes to the device."""
