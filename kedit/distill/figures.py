"""Figures of a test, for TensorBoard and the README. Knows rows of numbers only."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from kedit.distill.judging import EntityRow


def entities(rows: Sequence[EntityRow]) -> Figure:
    """Each entity's gain, against what its edit changed elsewhere, or where all share one edit against that of its
    definition in context.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    is_shared = len({row.change for row in rows}) == 1
    across = [row.prepend_gain if is_shared else row.change for row in rows]
    axes.scatter(across, [row.gain for row in rows], s=14, alpha=0.7)
    axes.axhline(0, color="grey", linewidth=0.8)
    if is_shared:
        ends = [min(0.0, *across), max(across)]
        axes.plot(ends, ends, color="grey", linewidth=0.8, linestyle="--")
        axes.set_title(f"change where nothing should change: {rows[0].change:+.4f} nats")
    else:
        axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("gain of the definition in context, nats" if is_shared else "change elsewhere, nats")
    axes.set_ylabel("gain of the edit, nats")
    if len(rows) <= 25:
        for row, place in zip(rows, across, strict=True):
            axes.annotate(row.name, (place, row.gain), fontsize=7, xytext=(3, 3), textcoords="offset points")
    return figure


def retention(curve: Sequence[tuple[int, float]]) -> Figure:
    """NLL of the probes of everything learned so far, over the number of facts learned."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True), marker="o", markersize=3)
    axes.set_xlabel("facts learned one after another")
    axes.set_ylabel("NLL of all their probes, nats")
    return figure
