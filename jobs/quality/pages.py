"""Writes one page of all gate results, newest first, that works offline.

Great Expectations' own Data Docs fetch styles and scripts from public hosts, and stay blank in a browser that can't
reach these.
"""

import json
from pathlib import Path

import jinja2

from lte_model.files import write_atomically

MOST_RESULTS = 500
"""The most results on the page. Older ones stay in the Data Docs and as JSON."""

PAGE = "gates.html"

_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Gates</title>
<style>
 :root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
 body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
 summary { cursor: pointer; display: flex; gap: 1rem; padding: .35rem 0; border-top: 1px solid #8884 }
 summary b { min-width: 4.5rem } summary span { flex: 1 } summary time { color: #888 }
 .holds b { color: #188038 } .broken b { color: #d93025 }
 li.broken { color: #d93025 } code { font-size: .85em; overflow-wrap: anywhere }
</style>
<h1>Gates</h1>
<p>{{ results|length }} results, newest first; {{ results|rejectattr("success")|list|length }} failed.
<a href="index.html">Great Expectations' Data Docs</a> hold each in full.</p>
{% for result in results %}
<details class="{{ 'holds' if result.success else 'broken' }}" {{ '' if result.success else 'open' }}>
<summary><b>{{ 'passed' if result.success else 'FAILED' }}</b><span>{{ result.meta.run_id.run_name }}</span>
<time>{{ result.meta.run_id.run_time[:16]|replace("T", " ") }} UTC</time></summary>
<ul>{% for rule in result.results %}
<li class="{{ 'holds' if rule.success else 'broken' }}">{{ rule.expectation_config.type|replace("_", " ") }}
<code>{{ rule.expectation_config.kwargs|arguments }}</code>
{%- if not rule.success and rule.result.unexpected_count %}:
{{ rule.result.unexpected_count }} of {{ rule.result.element_count }} rows, such as
<code>{{ (rule.result.partial_unexpected_index_list or rule.result.partial_unexpected_list or [])[:5] }}</code>
{%- endif %}</li>
{% endfor %}</ul></details>
{% endfor %}
</html>
"""


def _arguments(kwargs: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in kwargs.items() if name != "batch_id" and value is not None)


def write_gates_page(results: Path, site: Path) -> Path:
    """Writes the page of the results under `results` (Great Expectations' JSON files) into `site`."""
    newest = sorted(results.rglob("*.json"), key=lambda file: file.parent.name, reverse=True)[:MOST_RESULTS]
    environment = jinja2.Environment(autoescape=True)
    environment.filters["arguments"] = _arguments
    page = environment.from_string(_TEMPLATE).render(results=[json.loads(file.read_text()) for file in newest])
    write_atomically(site / PAGE, page)
    return site / PAGE
