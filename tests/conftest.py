"""For all tests."""

import os
import sys

import pytest
from hypothesis import settings

# A machine that is busy with something else fails no property.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Of several processes each has a core; torch and what the tests start would take them all.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # PySpark takes a main module of no file for its own doctests, and ends the process.
    sys.modules["__main__"].__file__ = pytest.__file__
