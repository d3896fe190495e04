"""Checks of installed versions and of infrastructure files."""
