"""The pure core: what a turn is, what it does next, what the model gets to see. No I/O, no clock, no randomness."""
