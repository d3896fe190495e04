"""The page of a read-out (read_out.html.jinja, in the frame of lte_model/pages/page.html.jinja)."""

from collections.abc import Sequence

from markupsafe import Markup

from lte_model.figures import Figure, percent
from lte_model.online_test.content import Content, how_long, p_in_words
from lte_model.pages import page

_TEMPLATE = "online_test/read_out.html.jinja"
_WIDTH, _HEIGHT, _LEFT, _BELOW = 900, 200, 60, 24  # of the chart, in its own units


def render(content: Content) -> str:
    """The page as one string of HTML."""
    return page.render(
        _TEMPLATE,
        read=content,
        decisive=[one for one in content["comparisons"] if one["metric"] == content["metrics"][0]],
        how_long=lambda one: how_long(content, one),
        day_chart=lambda one: _day_chart(one["by_day"]),
        p=p_in_words,
    )


def _day_chart(by_day: Sequence[Figure]) -> Markup:
    """The uplift as of each day as a line, its interval as a band, and 0; empty where too few days are defined."""
    known = [(day, *figure.defined) for day, figure in enumerate(by_day, start=1) if figure.defined is not None]
    if len(known) < 2:
        return Markup("")
    # The wide band of the first days would dwarf the rest: the axis fits the later half, and 0.
    later = known[len(known) // 2 :]
    low, high = min(0, *(low for _, _, low, _ in later)), max(0, *(high for _, _, _, high in later))
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)

    def at(day: int, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT) * (day - 1) / max(1, len(by_day) - 1)
        y = (_HEIGHT - _BELOW) * (high - min(max(value, low), high)) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    band = [at(day, low_end) for day, _, low_end, _ in known]
    band += [at(day, high_end) for day, _, _, high_end in reversed(known)]
    line = [at(day, value) for day, value, _, _ in known]
    zero = at(1, 0).split(",")[1]
    # The ends of the last interval are labelled, unless they would overlap the 0.
    ends = {value: float(at(1, value).split(",")[1]) for value in later[-1][2:]}
    named = {zero: "0"} | {f"{y:.1f}": percent(value) for value, y in ends.items() if abs(y - float(zero)) > 14}
    labels = [
        f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{label}</text>' for y, label in named.items()
    ]
    labels += [
        f'<text x="{at(day, low).split(",")[0]}" y="{_HEIGHT - 6}" text-anchor="{anchor}">day {day}</text>'
        for day, anchor in ((1, "start"), (len(by_day), "end"))
    ]
    return Markup(  # noqa: S704 - numbers and our own words alone
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Uplift as of each day, with its interval" '
        f'font-size="12" fill="var(--soft)">'
        f'<polygon points="{" ".join(band)}" fill="var(--window)" opacity=".55"/>'
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{zero}" y2="{zero}" stroke="var(--ink)" stroke-width="1"/>'
        f'<polyline points="{" ".join(line)}" fill="none" stroke="var(--prefix)" stroke-width="2"/>'
        f"{''.join(labels)}</svg>"
    )
