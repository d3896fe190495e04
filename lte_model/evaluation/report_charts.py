"""The charts of the reports: each function draws one figure and returns it as SVG for the page.

Charts are drawn in placeholder colours, which `as_svg` turns into the page's CSS variables (`PALETTE` names them), so
that one drawing is readable in light and in dark mode. Text stays text, in the page's font.
"""

import datetime
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.dates import date2num
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lte_model.domain.windows import Interval, lte_window, target_window
from lte_model.evaluation.results import Evaluation
from lte_model.figures import SIDE_NAMES, metric_label
from lte_model.pages.drawing import (
    MARKERS,
    PALETTE,
    STYLE,
    WIDTH,
    as_svg,
    colour_of,
    date_axis,
    draw_bar,
    draw_point,
    from_the_top,
    side_by_side,
)

_MOST_ANCHORS = 12


def draw_calendar(
    anchors: Sequence[datetime.date], validation: Interval, test: Interval, lag_days: int, window_days: int,
    first_event: datetime.date,
) -> Markup:  # fmt: skip
    """Each snapshot date of the training on its own line: the LTE's window, the lag, and what is predicted.

    Shows at most the newest twelve anchors, and marks `first_event` where it falls inside a window.
    """
    rows: list[tuple[str, datetime.date, Interval | None]]
    rows = [(f"anchor {date}", date, None) for date in anchors[-_MOST_ANCHORS:]]
    rows += [(f"validation {validation.start}", validation.start, validation), (f"test {test.start}", test.start, test)]
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Drawing(figsize=(WIDTH, 0.9 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for line, (_, cut, evaluated) in enumerate(rows):
            draw_bar(axes, line, lte_window(cut, lag_days, window_days), "window")
            draw_bar(axes, line, target_window(cut, lag_days), "target" if evaluated is None else "none")
            if evaluated is not None:
                draw_bar(axes, line, evaluated, "test" if evaluated is test else "validation")
        start = lte_window(rows[0][1], lag_days, window_days).start
        top = -0.5
        if start < first_event < test.end:
            top = -1.1
            axes.axvline(date2num(first_event), color=PALETTE["ink"], linewidth=0.8, linestyle=(0, (3, 2)))
            axes.annotate(
                "first event", (date2num(first_event), -0.8), (4, 0), textcoords="offset points", va="center",
                color=PALETTE["soft"], fontsize=7.5,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, top)
        axes.margins(x=0)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        date_axis(axes)
        return as_svg(figure, "calendar", "The LTE's window, the lag and the targets of each snapshot date")


def draw_events_per_week(
    weeks: Sequence[datetime.date], counts: Sequence[int], validation: Interval, test: Interval
) -> Markup:
    """The number of events in the weeks that begin on `weeks`, as an area; validation and test days are marked."""
    edges = date2num([*weeks, weeks[-1] + datetime.timedelta(weeks=1)])
    heights = [*counts, counts[-1]]
    with rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure = Drawing(figsize=(WIDTH, 1.9), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(edges, heights, step="post", color=PALETTE["window"], alpha=0.55, linewidth=0)
        axes.step(edges, heights, where="post", color=PALETTE["prefix"], linewidth=0.9)
        for interval, colour in ((validation, "validation"), (test, "test")):
            axes.axvspan(
                date2num(interval.start), date2num(interval.end), color=PALETTE[colour], alpha=0.25, linewidth=0
            )
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
        date_axis(axes)
        return as_svg(figure, "weeks", "Events per week")


def draw_metrics(evaluation: Evaluation, names: Sequence[str]) -> Markup:
    """One panel for each family of metrics, one group of points for each cutoff, bars for the 95 % intervals."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.partition("@")[0], []).append(name)
    sides = _sides(evaluation)
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        height = 0.9 + 0.16 * (len(sides) + 1) * max(map(len, families.values()))
        figure = Drawing(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(1, len(families), squeeze=False)[0]
        for axes, members in zip(panels, families.values(), strict=True):
            for group, name in enumerate(members):
                for place, side in enumerate(sides):
                    measured = evaluation["sides"][side]["metrics"].get(name)
                    draw_point(axes, measured, group * (len(sides) + 1) + place, side, label=group == 0)
            axes.set_yticks(
                [group * (len(sides) + 1) + (len(sides) - 1) / 2 for group in range(len(members))],
                [metric_label(name) for name in members],
            )
            from_the_top(axes)
            axes.set_xlim(left=0)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(sides), handletextpad=0.3)
        return as_svg(figure, "metrics", "Metrics of every side with 95 % intervals")


def draw_cohorts(evaluation: Evaluation, metric: str) -> Markup:
    """Left: `metric` of each side by cohort. Right: the uplift of prefix over none with its interval, and 0 marked.

    Each cohort's name is followed by its number of users.
    """
    groups = evaluation["cohorts"]
    sides = [side for side in _sides(evaluation) if any(side in cohort["sides"] for cohort in groups)]
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Drawing(figsize=(WIDTH, 0.8 + 0.15 * (len(sides) + 1) * len(groups)), layout=side_by_side())
        values, uplifts = figure.subplots(1, 2, sharey=True)
        for group, cohort in enumerate(groups):
            for place, side in enumerate(sides):
                measured = cohort["sides"].get(side, {}).get(metric)
                draw_point(values, measured, group * (len(sides) + 1) + place, side)
            middle = group * (len(sides) + 1) + (len(sides) - 1) / 2
            draw_point(uplifts, cohort["uplift"].scaled(100), middle, "prefix")
        values.set_yticks(
            [group * (len(sides) + 1) + (len(sides) - 1) / 2 for group in range(len(groups))],
            [f"{cohort['name']} ({cohort['users']:,})" for cohort in groups],
        )
        values.set_title(metric_label(metric))
        values.set_xlim(left=0)
        uplifts.set_title("Difference that the LTE makes, %")
        uplifts.axvline(0, color=PALETTE["ink"], linewidth=0.8)
        for axes in (values, uplifts):
            from_the_top(axes)
        values.set_ylim(len(groups) * (len(sides) + 1) - 0.5, -1)
        return as_svg(figure, "cohorts", "Metrics and uplift by cohort")


def draw_curves(evaluation: Evaluation, metric: str) -> Markup:
    """Training loss and the validation's metric by epoch, a line for each model; the best epoch is marked."""
    validated = f"validation_{metric}"
    with rc_context(STYLE):
        figure = Drawing(figsize=(WIDTH, 2.3), layout=side_by_side())
        loss, quality = figure.subplots(1, 2)
        for side, epochs in evaluation["curves"].items():
            style = {"color": PALETTE[colour_of(side)], "linewidth": 1.4, "label": SIDE_NAMES.get(side, side)}
            numbers = [epoch["epoch"] for epoch in epochs]
            loss.plot(numbers, [epoch["training_loss"] for epoch in epochs], **style)
            scores = [epoch[validated] for epoch in epochs]
            quality.plot(numbers, scores, **style)
            if scores:
                best = max(range(len(scores)), key=scores.__getitem__)
                quality.plot(
                    numbers[best], scores[best], marker=MARKERS.get(side, "o"), markersize=5, color=style["color"]
                )
        loss.set_title("Training loss")
        quality.set_title(f"{metric_label(metric)} on the validation days; the best epoch is kept")
        for axes in (loss, quality):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        loss.legend(loc="upper right")
        return as_svg(figure, "curves", "Training loss and validation metric by epoch")


def _sides(evaluation: Evaluation) -> list[str]:
    """The evaluated sides, the known ones in the order of `SIDE_NAMES`."""
    return sorted(evaluation["sides"], key=lambda side: [*SIDE_NAMES, side].index(side))
