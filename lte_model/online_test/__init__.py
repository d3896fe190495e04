"""The read-out of an online A/B test: statistics, verdict, page."""
