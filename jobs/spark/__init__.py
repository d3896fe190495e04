"""The Spark session, the warehouse as jobs write it, commits, files, shipped code."""
