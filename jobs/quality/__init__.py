"""The gates: what must hold of a table before the next one is written from it."""
