"""The Spark session, the warehouse's tables, commit notes, table files, and code shipped to executors."""
