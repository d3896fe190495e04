"""The charts of the ablation's and the drill's pages."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lte_model.figures import SIDE_NAMES, Figure, metric_label
from lte_model.pages.drawing import MARKERS, PALETTE, STYLE, WIDTH, as_svg, from_the_top, side_by_side
from lte_model.studies.results import Ablation, Drill
from lte_model.studies.spaces import NO_LTE, SKEWED


def draw_answers(questions: Sequence[dict[str, Any]]) -> Markup:
    """The answers of an ablation, a line each: the relative difference in % with its interval.

    A dot stands for each seed, a diamond for what the paper reports.
    """
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Drawing(figsize=(WIDTH, 0.7 + 0.27 * len(questions)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=PALETTE["ink"], linewidth=0.8)
        for line, question in enumerate(questions):
            if question["size"] is not None:
                axes.plot(100 * question["size"], line, "D", markersize=5, color=PALETTE["target"], fillstyle="none")
            seeds = [100 * difference for difference in question["by_seed"] if difference is not None]
            axes.plot(seeds, [line + 0.24] * len(seeds), ".", markersize=2.5, color=PALETTE["soft"])
            _draw_change(axes, line, question["uplift"], "" if question["measure"] == "ndcg" else "ink")
        axes.set_yticks(range(len(questions)), [question["text"] for question in questions])
        from_the_top(axes)
        axes.set_ylim(len(questions) - 0.4, -0.6)
        return as_svg(figure, "answers", "Relative differences with 95 % intervals")


def draw_budget(ablation: Ablation) -> Markup:
    """Left: the headline by number of tokens, with and without LTE, with intervals. Right: the cost."""
    tokens, metric = ablation["budget"]["tokens"], ablation["headline"]
    with rc_context(STYLE):
        figure = Drawing(figsize=(WIDTH, 2.8), layout=side_by_side())
        quality, cost = figure.subplots(1, 2)
        for side in ("prefix", "none"):
            colour = PALETTE[side]
            of_tokens = [ablation["sides"][f"{side}@{n}"] for n in tokens]
            measured = [of_side["metrics"][metric] for of_side in of_tokens]
            style = {"color": colour, "marker": MARKERS[side], "markersize": 4, "linewidth": 1.4}
            quality.plot(tokens, [figure_of.value for figure_of in measured], label=SIDE_NAMES[side], **style)
            for n, figure_of in zip(tokens, measured, strict=True):
                quality.plot((n, n), (figure_of.low, figure_of.high), color=colour, linewidth=1)
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
        return as_svg(figure, "budget", "Quality and cost against the tokens of the sequence")


def draw_drill(found: Drill) -> Markup:
    """The cells of a drill. Left: the headline with its interval. Right: the change in % by the other version's LTE."""
    metric, rows = found["headline"], []
    for space, of_space in found["spaces"].items():
        for name, change in SKEWED.items():
            for cell, mark in ((change.base, "own"), (change.ours, "other"), (f"{change.ours[:2]}{NO_LTE}", NO_LTE)):
                rows.append((space, name, cell, mark, of_space["cells"][cell]["metrics"][metric]))
    marks = {
        "own": ("prefix", "o", "LTE of the ranker's version"),
        "other": ("target", "D", "LTE of the other version"),
        NO_LTE: ("none", "s", "no LTE"),
    }
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Drawing(figsize=(WIDTH, 0.9 + 0.17 * len(rows)), layout=side_by_side())
        values, changes = figure.subplots(1, 2, sharey=True)
        changes.axvline(0, color=PALETTE["ink"], linewidth=0.8)
        ticks = {}
        for line, (space, name, cell, mark, measured) in enumerate(rows):
            y = line + line // len(marks)
            colour, marker, label = marks[mark]
            values.plot((measured.low, measured.high), (y, y), color=PALETTE[colour], linewidth=1.4)
            values.plot(
                measured.value, y, marker=marker, markersize=4, color=PALETTE[colour], linestyle="none",
                label=label if line < len(marks) else None,
            )  # fmt: skip
            if mark == "other":
                ticks[y] = f"{space}, ranker {cell[:2]}"
                _draw_change(changes, y, found["spaces"][space]["changes"][name]["uplift"])
        values.set_yticks(list(ticks), list(ticks.values()))
        values.set_title(metric_label(metric))
        changes.set_title("Difference that the other version's LTE makes, %")
        for axes in (values, changes):
            from_the_top(axes)
        values.set_ylim(max(ticks) + 1.6, -1)
        handles, labels = values.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handletextpad=0.3)
        return as_svg(figure, "drill", "NDCG of every cell, and the difference that the other version's LTE makes")


def _draw_change(axes: Axes, line: int, uplift: Figure, colour: str = "") -> None:
    """A relative difference in % on the row `line`, in the colour of its outcome unless another is named."""
    in_percent = uplift.scaled(100)
    if in_percent.defined is None:
        return
    value, low, high = in_percent.defined
    drawn_in = PALETTE[colour or uplift.outcome.value]
    axes.plot((low, high), (line, line), color=drawn_in, linewidth=1.6)
    axes.plot(value, line, "o", markersize=4.5, color=drawn_in)
