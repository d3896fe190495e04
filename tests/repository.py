"""The root folder of this checkout, for tests that read its files or start its commands."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
