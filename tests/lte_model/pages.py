"""Checks for every page with charts."""

import re
from xml.etree import ElementTree

from lte_model.pages import drawing


def require_charts(page: str, number: int) -> None:
    """Asserts that the page has `number` charts, well-formed, with unique ids and the page's colours."""
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == number
    ids = [identifier for chart in charts for identifier in re.findall(r'\bid="([^"]+)"', chart)]
    assert len(ids) == len(set(ids))
    for chart in charts:
        ElementTree.fromstring(chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert set(re.findall(r"#[0-9a-f]{6}\b", chart)) == set()
        assert set(re.findall(r"var\(--([\w-]+)\)", chart)) <= set(drawing.PALETTE)
