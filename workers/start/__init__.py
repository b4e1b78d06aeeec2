"""How a writer starts, or makes a lost device anew: takes over, registers, loads, makes the device equal to Redis."""
