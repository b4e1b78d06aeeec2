"""Pure: peer table, plans, pools, drift. No input or output, no clock."""
