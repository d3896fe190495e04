"""The shop's feeds as they are read, and the account of their rows."""
