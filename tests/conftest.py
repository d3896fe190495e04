"""For all tests."""

from hypothesis import settings

# A machine that is busy with something else fails no property.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")
