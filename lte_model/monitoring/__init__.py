"""The measures of a snapshot before it goes live, and their page."""
