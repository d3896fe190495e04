"""Great Expectations' pages with every value escaped.

Its own view doesn't escape the rows that broke a rule, so that an id such as `<script>…` would run in the browser of
anyone who opens the page.
"""

import html
from typing import Any

from great_expectations.render.view.view import DefaultJinjaPageView
from jinja2 import pass_context

VIEW = {"module_name": __name__, "class_name": "EscapedPageView"}


class EscapedPageView(DefaultJinjaPageView):
    """A page that escapes plain text. Only content blocks render markup."""

    @pass_context
    def render_content_block(self, context: Any, content_block: Any, *arguments: Any, **options: Any) -> Any:
        """The block rendered by Great Expectations, with its values escaped."""
        return super().render_content_block(context, _escaped(content_block), *arguments, **options)


def _escaped(block: Any) -> Any:
    if isinstance(block, str):
        return html.escape(block)
    if isinstance(block, list):
        return [_escaped(inner) for inner in block]
    if isinstance(block, dict) and "content_block_type" not in block:
        return html.escape(str(block))
    return block
