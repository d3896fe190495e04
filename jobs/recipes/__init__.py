"""How the LTE of each representation is made for a date: bases, encoders, weights."""
