"""What all pages share: one look (page.html.jinja), and one way to write figures.

A page loads nothing: no script, no font, no external picture. Its content security policy forbids them.
Templates escape every value; only the charts (drawing.py) are trusted as markup.
"""

from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lte_model import figures
from lte_model.files import PACKAGE


def render(template: str, **values: Any) -> str:
    """The page as one string of HTML. `template` is a path below lte_model/: it lies beside the code that fills it."""
    return _environment().get_template(template).render(values)


def duration(seconds: float) -> str:
    """A duration such as `1.4 s`, `48 s` or `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=figures.number,
        percent=figures.percent,
        metric=figures.metric_label,
        duration=duration,
    )
    return environment
