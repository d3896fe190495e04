"""Runs the project: on one machine, in production, and over a whole feed."""
