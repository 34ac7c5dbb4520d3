"""Figures of an edit stream, for TensorBoard and the README. Knows rows of numbers only."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from kedit.editing.edits import ASPECTS
from kedit.editing.stream_report import KINDS, Point


def lifelong(curve: Sequence[Point]) -> Figure:
    """Each aspect's means over all earlier edits, over the number of edits made: one panel for each way of asking."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind, title in zip(panels, KINDS, ("free greedy decoding", "teacher-forced"), strict=True):
        for number, aspect in enumerate(ASPECTS):
            points = [(one.edits, one.scores[aspect][kind]) for one in curve if kind in one.scores.get(aspect, {})]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=aspect, color=f"C{number}")
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("edits made")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share right, over all edits so far")
    if panels[0].get_legend_handles_labels()[1]:
        panels[0].legend(fontsize=8)
    return figure
