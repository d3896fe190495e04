"""Where this checkout lies: whatever infra/ runs starts there, and the paths of its files are given from there."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
