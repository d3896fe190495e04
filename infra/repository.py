"""The root folder of this checkout: commands run there, and file paths are relative to it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
