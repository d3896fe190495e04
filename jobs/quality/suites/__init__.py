"""The rules of each table, as Great Expectations expectations on Polars frames."""
