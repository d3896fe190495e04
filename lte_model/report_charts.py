"""The charts of the reports: each function draws one figure and returns it as SVG to be put into the page.

The drawings carry no colour of their own. They are drawn in placeholder colours, which `_as_svg` turns into the CSS
variables of the page (`PALETTE` names them), so that one drawing is readable on light and on dark paper. The text
stays text, in the page's font.
"""

import datetime
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lte_model.settings import Bounds
from lte_model.spaces import NO_LTE, SKEWED
from lte_model.verdict import Ablation, Drill, Evaluation, Figure, is_defined, metric_label, outcome
from lte_model.windows import Interval, lte_window, target_window

PALETTE = {
    name: f"#0000{number:02x}"
    for number, name in enumerate(
        ("ink", "soft", "line", "prefix", "none", "popularity-all", "popularity-30d", "popularity-7d")
        + ("window", "target", "validation", "test", "better", "worse", "undecided"),
        start=1,
    )
}
"""CSS variable → the colour that stands for it while matplotlib draws."""

SIDES = {
    "prefix": "with LTE",
    "none": "without LTE",
    "popularity_all": "popularity, all time",
    "popularity_30d": "popularity, 30 days",
    "popularity_7d": "popularity, 7 days",
}
_MARKERS = {"prefix": "o", "none": "s", "popularity_all": "^", "popularity_30d": "D", "popularity_7d": "v"}

_WIDTH = 9.0  # inches; the page scales every chart to the width of its column
_STYLE = {
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

_MOST_ANCHORS = 12
_XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


def calendar(
    anchors: Sequence[datetime.date], validation: Interval, test: Interval, lag_days: int, window_days: int,
    first_event: datetime.date,
) -> Markup:  # fmt: skip
    """Each snapshot date of the training on its own line: the LTE's window, the lag, and what is predicted.

    The newest twelve anchors at most; `first_event` is marked where it falls inside a window.
    """
    rows = [(f"anchor {date}", date, None) for date in anchors[-_MOST_ANCHORS:]]
    rows += [(f"validation {validation.start}", validation.start, validation), (f"test {test.start}", test.start, test)]
    with rc_context(_STYLE | {"axes.grid": False}):
        figure = Drawing(figsize=(_WIDTH, 0.9 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for line, (_, cut, evaluated) in enumerate(rows):
            _bar(axes, line, lte_window(cut, lag_days, window_days), "window")
            _bar(axes, line, target_window(cut, lag_days), "target" if evaluated is None else "none")
            if evaluated is not None:
                _bar(axes, line, evaluated, "test" if evaluated is test else "validation")
        start = lte_window(rows[0][1], lag_days, window_days).start
        top = -0.5
        if start < first_event < test.end:
            top = -1.1
            axes.axvline(first_event, color=PALETTE["ink"], linewidth=0.8, linestyle=(0, (3, 2)))
            axes.annotate(
                "first event", (first_event, -0.8), (4, 0), textcoords="offset points", va="center",
                color=PALETTE["soft"], fontsize=7.5,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, top)
        axes.margins(x=0)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _date_axis(axes)
        return _as_svg(figure, "calendar", "The LTE's window, the lag and the targets of each snapshot date")


def events_per_week(
    weeks: Sequence[datetime.date], counts: Sequence[int], validation: Interval, test: Interval
) -> Markup:
    """The number of events in the weeks that begin on `weeks`, as an area; validation and test days are marked."""
    edges = [*weeks, weeks[-1] + datetime.timedelta(weeks=1)]
    heights = [*counts, counts[-1]]
    with rc_context(_STYLE | {"axes.grid.axis": "y"}):
        figure = Drawing(figsize=(_WIDTH, 1.9), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(edges, heights, step="post", color=PALETTE["window"], alpha=0.55, linewidth=0)
        axes.step(edges, heights, where="post", color=PALETTE["prefix"], linewidth=0.9)
        for interval, colour in ((validation, "validation"), (test, "test")):
            axes.axvspan(interval.start, interval.end, color=PALETTE[colour], alpha=0.25, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
        _date_axis(axes)
        return _as_svg(figure, "weeks", "Events per week")


def metrics(evaluation: Evaluation, names: Sequence[str]) -> Markup:
    """One panel for each family of metrics, one group of points for each cutoff, bars for the 95 % intervals."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.partition("@")[0], []).append(name)
    sides = _sides(evaluation)
    with rc_context(_STYLE | {"axes.grid.axis": "x"}):
        height = 0.9 + 0.16 * (len(sides) + 1) * max(map(len, families.values()))
        figure = Drawing(figsize=(_WIDTH, height), layout="constrained")
        panels = figure.subplots(1, len(families), squeeze=False)[0]
        for axes, members in zip(panels, families.values(), strict=True):
            for group, name in enumerate(members):
                for place, side in enumerate(sides):
                    measured = evaluation["sides"][side]["metrics"].get(name)
                    _point(axes, measured, group * (len(sides) + 1) + place, side, label=group == 0)
            axes.set_yticks(
                [group * (len(sides) + 1) + (len(sides) - 1) / 2 for group in range(len(members))],
                [metric_label(name) for name in members],
            )
            _from_the_top(axes)
            axes.set_xlim(left=0)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(sides), handletextpad=0.3)
        return _as_svg(figure, "metrics", "Metrics of every side with 95 % intervals")


def cohorts(evaluation: Evaluation, metric: str) -> Markup:
    """Left, `metric` of each side by cohort; right, the uplift of prefix over none with its interval and 0 marked.

    The number of users stands behind a cohort's name.
    """
    groups = evaluation["cohorts"]
    sides = [side for side in _sides(evaluation) if any(side in cohort["sides"] for cohort in groups)]
    with rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure = Drawing(figsize=(_WIDTH, 0.8 + 0.15 * (len(sides) + 1) * len(groups)), layout="constrained")
        values, uplifts = figure.subplots(1, 2, sharey=True)
        for group, cohort in enumerate(groups):
            for place, side in enumerate(sides):
                measured = cohort["sides"].get(side, {}).get(metric)
                _point(values, measured, group * (len(sides) + 1) + place, side)
            middle = group * (len(sides) + 1) + (len(sides) - 1) / 2
            _point(uplifts, _scaled(cohort["uplift"], 100), middle, "prefix")
        values.set_yticks(
            [group * (len(sides) + 1) + (len(sides) - 1) / 2 for group in range(len(groups))],
            [f"{cohort['name']} ({cohort['users']:,})" for cohort in groups],
        )
        values.set_title(metric_label(metric))
        values.set_xlim(left=0)
        uplifts.set_title("Difference that the LTE makes, %")
        uplifts.axvline(0, color=PALETTE["ink"], linewidth=0.8)
        for axes in (values, uplifts):
            _from_the_top(axes)
        figure.get_layout_engine().set(wspace=0.06)
        values.set_ylim(len(groups) * (len(sides) + 1) - 0.5, -1)
        return _as_svg(figure, "cohorts", "Metrics and uplift by cohort")


def curves(evaluation: Evaluation, metric: str) -> Markup:
    """Training loss and the validation's metric by epoch, a line for each model; the best epoch is marked."""
    validated = f"validation_{metric}"
    with rc_context(_STYLE):
        figure = Drawing(figsize=(_WIDTH, 2.3), layout="constrained")
        loss, quality = figure.subplots(1, 2)
        for side, epochs in evaluation["curves"].items():
            style = {"color": PALETTE[_colour(side)], "linewidth": 1.4, "label": SIDES.get(side, side)}
            numbers = [epoch["epoch"] for epoch in epochs]
            loss.plot(numbers, [epoch["training_loss"] for epoch in epochs], **style)
            scores = [epoch[validated] for epoch in epochs]
            quality.plot(numbers, scores, **style)
            if scores:
                best = max(range(len(scores)), key=scores.__getitem__)
                quality.plot(
                    numbers[best], scores[best], marker=_MARKERS.get(side, "o"), markersize=5, color=style["color"]
                )
        loss.set_title("Training loss")
        quality.set_title(f"{metric_label(metric)} on the validation days; the best epoch is kept")
        for axes in (loss, quality):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        loss.legend(loc="upper right")
        figure.get_layout_engine().set(wspace=0.06)
        return _as_svg(figure, "curves", "Training loss and validation metric by epoch")


def answers(questions: Sequence[dict[str, Any]]) -> Markup:
    """The answers of an ablation, a line each: the relative difference in % with its interval, a dot for each seed, and
    a diamond where the paper has its own."""
    with rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure = Drawing(figsize=(_WIDTH, 0.7 + 0.27 * len(questions)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=PALETTE["ink"], linewidth=0.8)
        for line, question in enumerate(questions):
            uplift = _scaled(question["uplift"], 100)
            if question["size"] is not None:
                axes.plot(100 * question["size"], line, "D", markersize=5, color=PALETTE["target"], fillstyle="none")
            seeds = [100 * difference for difference in question["by_seed"] if difference is not None]
            axes.plot(seeds, [line + 0.24] * len(seeds), ".", markersize=2.5, color=PALETTE["soft"])
            if uplift:
                colour = PALETTE[outcome(uplift).value] if question["measure"] == "ndcg" else PALETTE["ink"]
                axes.plot((uplift["low"], uplift["high"]), (line, line), color=colour, linewidth=1.6)
                axes.plot(uplift["value"], line, "o", markersize=4.5, color=colour)
        axes.set_yticks(range(len(questions)), [question["text"] for question in questions])
        _from_the_top(axes)
        axes.set_ylim(len(questions) - 0.4, -0.6)
        return _as_svg(figure, "answers", "Relative differences with 95 % intervals")


def budget(ablation: Ablation) -> Markup:
    """Left, the headline against the tokens of the sequence, with LTE and without, with intervals; right, the cost."""
    tokens, metric = ablation["budget"]["tokens"], ablation["headline"]
    with rc_context(_STYLE):
        figure = Drawing(figsize=(_WIDTH, 2.8), layout="constrained")
        quality, cost = figure.subplots(1, 2)
        for side in ("prefix", "none"):
            colour = PALETTE[side]
            of_tokens = [ablation["sides"][f"{side}@{n}"] for n in tokens]
            measured = [of_side["metrics"][metric] for of_side in of_tokens]
            style = {"color": colour, "marker": _MARKERS[side], "markersize": 4, "linewidth": 1.4}
            quality.plot(tokens, [figure_of["value"] for figure_of in measured], label=SIDES[side], **style)
            for n, figure_of in zip(tokens, measured, strict=True):
                quality.plot((n, n), (figure_of["low"], figure_of["high"]), color=colour, linewidth=1)
            cost.plot(tokens, [of_side["milliseconds_per_query"] for of_side in of_tokens], **style)
        quality.set_title(f"{metric_label(metric)}, test users")
        cost.set_title("Milliseconds a query, in batches on the CPU")
        cost.set_ylim(bottom=0)
        for axes in (quality, cost):
            axes.set_xscale("log")
            axes.set_xticks(tokens, [str(n) for n in tokens])
            axes.minorticks_off()
            axes.set_xlabel("tokens of the sequence, the context token among them")
        quality.legend(loc="lower right")
        figure.get_layout_engine().set(wspace=0.06)
        return _as_svg(figure, "budget", "Quality and cost against the tokens of the sequence")


def by_date(
    name: str,
    title: str,
    lines: Mapping[str, Sequence[tuple[datetime.date, float]]],
    bounds: Bounds,
    written: Callable[[float], str],
) -> Markup:
    """A small chart: a line (dates and values) for each name, and what lies beyond the bounds shaded.

    The bounds of a warning are always in view, those of a stop once a value is beyond the warning.
    """
    values = [value for line in lines.values() for _, value in line]
    view = values + [bound for bound in (bounds.warn_below, bounds.warn_above) if math.isfinite(bound)]
    view += [bounds.stop_below] if math.isfinite(bounds.stop_below) and min(values) < bounds.warn_below else []
    view += [bounds.stop_above] if math.isfinite(bounds.stop_above) and max(values) > bounds.warn_above else []
    margin = 0.06 * (max(view) - min(view) or abs(max(view)) or 1)
    low, high = min(view) - margin, max(view) + (margin if any(view) else 1)
    with rc_context(_STYLE | {"axes.grid.axis": "y"}):
        figure = Drawing(figsize=(_WIDTH / 3, 1.45), layout="constrained")
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
        for line, colour in zip(lines.values(), LINES, strict=False):
            dates = [date for date, _ in line]
            axes.plot(
                dates, [value for _, value in line], color=PALETTE[colour], linewidth=1.2, marker="o",
                markersize=3 if len(dates) < 40 else 0,
            )  # fmt: skip
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=all(float(value).is_integer() for value in view)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
        _date_axis(axes, ticks=(2, 5))
        return _as_svg(figure, name, f"{title} by date")


def drill(found: Drill) -> Markup:
    """Left, the headline of every cell of a drill, with its interval; right, in %, what the LTE of the other version
    changes."""
    metric, rows = found["headline"], []
    for space, of_space in found["spaces"].items():
        for name, change in SKEWED.items():
            for cell, mark in ((change.base, "own"), (change.ours, "other"), (f"{change.ours[:2]}{NO_LTE}", NO_LTE)):
                rows.append((space, name, cell, mark, of_space["cells"][cell]["metrics"][metric]))
    marks = {"own": ("prefix", "o", "LTE of the ranker's version"), "other": ("target", "D", "LTE of the other version"),
             NO_LTE: ("none", "s", "no LTE")}  # fmt: skip
    with rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure = Drawing(figsize=(_WIDTH, 0.9 + 0.17 * len(rows)), layout="constrained")
        values, changes = figure.subplots(1, 2, sharey=True)
        changes.axvline(0, color=PALETTE["ink"], linewidth=0.8)
        ticks = {}
        for line, (space, name, cell, mark, measured) in enumerate(rows):
            y = line + line // len(marks)
            colour, marker, label = marks[mark]
            values.plot((measured["low"], measured["high"]), (y, y), color=PALETTE[colour], linewidth=1.4)
            values.plot(
                measured["value"], y, marker=marker, markersize=4, color=PALETTE[colour], linestyle="none",
                label=label if line < len(marks) else None,
            )  # fmt: skip
            if mark == "other":
                ticks[y] = f"{space}, ranker {cell[:2]}"
                uplift = _scaled(found["spaces"][space]["changes"][name]["uplift"], 100)
                if uplift:
                    colour = PALETTE[outcome(uplift).value]
                    changes.plot((uplift["low"], uplift["high"]), (y, y), color=colour, linewidth=1.6)
                    changes.plot(uplift["value"], y, "o", markersize=4.5, color=colour)
        values.set_yticks(list(ticks), list(ticks.values()))
        values.set_title(metric_label(metric))
        changes.set_title("Difference that the other version's LTE makes, %")
        for axes in (values, changes):
            _from_the_top(axes)
        values.set_ylim(max(ticks) + 1.6, -1)
        handles, labels = values.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handletextpad=0.3)
        figure.get_layout_engine().set(wspace=0.06)
        return _as_svg(figure, "drill", "NDCG of every cell, and the difference that the other version's LTE makes")


def _sides(evaluation: Evaluation) -> list[str]:
    """The evaluated sides, the known ones in the order of `SIDES`."""
    return sorted(evaluation["sides"], key=lambda side: [*SIDES, side].index(side))


def _colour(side: str) -> str:
    return side.replace("_", "-") if side in SIDES else "soft"


def _bar(axes: Axes, line: int, interval: Interval, colour: str) -> None:
    axes.barh(
        line, datetime.timedelta(days=interval.days), left=interval.start, height=0.62, color=PALETTE[colour],
        linewidth=0,
    )  # fmt: skip


def _point(axes: Axes, measured: Figure | None, y: float, side: str, label: bool = False) -> None:
    if not is_defined(measured):
        return
    colour = PALETTE[_colour(side)]
    axes.plot((measured["low"], measured["high"]), (y, y), color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot(
        measured["value"], y, marker=_MARKERS.get(side, "o"), markersize=4, color=colour, linestyle="none",
        label=SIDES.get(side, side) if label else None,
    )  # fmt: skip


def _scaled(figure: Figure | None, factor: float) -> Figure | None:
    return {end: value * factor for end, value in figure.items()} if is_defined(figure) else None


def _from_the_top(axes: Axes) -> None:
    """Lists the rows from the top down, without an axis line beside their names."""
    axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high), min(low, high))


def _date_axis(axes: Axes, ticks: tuple[int, int] = (4, 10)) -> None:
    locator = AutoDateLocator(minticks=ticks[0], maxticks=ticks[1])
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _as_svg(figure: Drawing, name: str, description: str) -> Markup:
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
    # Width and height in points would hold the chart at its drawn size; the page scales it by its viewBox.
    view = re.search(r'viewBox="[^"]*"', svg).group()
    svg = re.sub(r"^<svg [^>]*>", f'<svg {view} {_XLINK} role="img" aria-label="{description}">', svg)
    return Markup(svg)
