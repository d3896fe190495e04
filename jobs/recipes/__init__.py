"""How each representation's LTE is made for a date: bases, encoders, event weights."""
