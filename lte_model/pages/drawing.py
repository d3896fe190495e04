"""What all charts share: colours, scales, axes, and the conversion of a drawing to SVG."""

import datetime
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure as Drawing
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lte_model.domain.windows import Interval
from lte_model.figures import SIDE_NAMES, Figure
from lte_model.settings import Bounds

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

PALETTE = {
    name: f"#0000{number:02x}"
    for number, name in enumerate(
        (
            "ink", "soft", "line", "prefix", "none", "popularity-all", "popularity-30d", "popularity-7d",
            "window", "target", "validation", "test", "better", "worse", "undecided",
        ),
        start=1,
    )
}  # fmt: skip
"""CSS variable → the colour that stands for it while matplotlib draws."""

MARKERS = {"prefix": "o", "none": "s", "popularity_all": "^", "popularity_30d": "D", "popularity_7d": "v"}
WIDTH = 9.0  # inches; the page scales every chart to the width of its column
STYLE: "dict[RcKeyType, Any]" = {
    "font.size": 8,
    "svg.fonttype": "none",
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["soft"],
    "axes.edgecolor": PALETTE["line"],
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": PALETTE["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["line"],
    "ytick.color": PALETTE["line"],
    "xtick.labelcolor": PALETTE["soft"],
    "ytick.labelcolor": PALETTE["soft"],
    "legend.frameon": False,
    "legend.labelcolor": PALETTE["ink"],
}

LINES = ("prefix", "target", "validation", "test", "none")
"""The colours of the lines of one chart by date, in their order."""

_XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


def by_date(
    name: str,
    title: str,
    lines: Mapping[str, Sequence[tuple[datetime.date, float]]],
    bounds: Bounds,
    written: Callable[[float], str],
) -> Markup:
    """A small chart with a line (dates and values) for each name; areas beyond the bounds are shaded.

    The bounds of a warning are always in view, those of a stop only once a value is beyond the warning.
    """
    values = [value for line in lines.values() for _, value in line]
    view = values + [bound for bound in (bounds.warn_below, bounds.warn_above) if math.isfinite(bound)]
    view += [bounds.stop_below] if math.isfinite(bounds.stop_below) and min(values) < bounds.warn_below else []
    view += [bounds.stop_above] if math.isfinite(bounds.stop_above) and max(values) > bounds.warn_above else []
    margin = 0.06 * (max(view) - min(view) or abs(max(view)) or 1)
    low, high = min(view) - margin, max(view) + (margin if any(view) else 1)
    with rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure = Drawing(figsize=(WIDTH / 3, 1.45), layout="constrained")
        axes = figure.subplots()
        for begin, end, line, colour in (
            (bounds.stop_below, bounds.warn_below, bounds.warn_below, "undecided"),
            (bounds.warn_above, bounds.stop_above, bounds.warn_above, "undecided"),
            (-math.inf, bounds.stop_below, bounds.stop_below, "worse"),
            (bounds.stop_above, math.inf, bounds.stop_above, "worse"),
        ):
            begin, end = max(begin, low), min(end, high)
            if begin < end:
                axes.axhspan(begin, end, color=PALETTE[colour], alpha=0.14, linewidth=0)
                axes.axhline(line, color=PALETTE[colour], linewidth=0.8)
        for points, colour in zip(lines.values(), LINES, strict=False):
            axes.plot(
                date2num([date for date, _ in points]), [value for _, value in points], color=PALETTE[colour],
                linewidth=1.2, marker="o", markersize=3 if len(points) < 40 else 0,
            )  # fmt: skip
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=all(float(value).is_integer() for value in view)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
        date_axis(axes, ticks=(2, 5))
        return as_svg(figure, name, f"{title} by date")


def colour_of(side: str) -> str:
    """The name of a side's colour in `PALETTE`."""
    return side.replace("_", "-") if side in SIDE_NAMES else "soft"


def draw_bar(axes: Axes, line: int, interval: Interval, colour: str) -> None:
    """The days of `interval` as a bar on the row `line` of a chart by date."""
    axes.barh(line, interval.days, left=date2num(interval.start), height=0.62, color=PALETTE[colour], linewidth=0)


def draw_point(axes: Axes, measured: Figure | None, y: float, side: str, label: bool = False) -> None:
    """The value of `measured` as the marker of its side, on a line of its interval; nothing where it is undefined."""
    if measured is None or measured.defined is None:
        return
    value, low, high = measured.defined
    colour = PALETTE[colour_of(side)]
    axes.plot((low, high), (y, y), color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot(
        value, y, marker=MARKERS.get(side, "o"), markersize=4, color=colour, linestyle="none",
        label=SIDE_NAMES.get(side, side) if label else None,
    )  # fmt: skip


def side_by_side() -> ConstrainedLayoutEngine:
    """The layout of a drawing with two charts beside each other."""
    return ConstrainedLayoutEngine(wspace=0.06)


def from_the_top(axes: Axes) -> None:
    """Lists the rows from the top down, without an axis line beside their names."""
    axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high), min(low, high))


def date_axis(axes: Axes, ticks: tuple[int, int] = (4, 10)) -> None:
    """Labels the x-axis, in matplotlib's day numbers, with dates; `ticks` are the fewest and the most of them."""
    locator = AutoDateLocator(minticks=ticks[0], maxticks=ticks[1])
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def as_svg(figure: Drawing, name: str, description: str) -> Markup:
    """The drawing as an inline `<svg>`: placeholder colours become CSS variables, and ids are the chart's own."""
    written = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(
            written, format="svg", transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for variable, colour in PALETTE.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # Width and height in points would fix the chart at its drawn size; the page scales it by its viewBox.
    svg = re.sub(
        r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 {_XLINK} role="img" aria-label="{description}">', svg
    )
    return Markup(svg)  # noqa: S704 - matplotlib escapes the text of its own drawing
