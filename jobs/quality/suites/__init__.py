"""Each table's rules, as Great Expectations expectations on Polars frames."""
