"""The gates: data quality checks of a table before the next one is written from it."""
