"""Reads and checks the shop's feeds, and accounts for each of their rows."""
