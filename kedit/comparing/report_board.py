"""A comparison in TensorBoard: figures and costs as scalars, retention over the facts taught, the verdict as text."""

from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from kedit.comparing.report_text import report_text
from kedit.comparing.results import Comparison, Figure
from kedit.comparing.standings import asked, damage, right
from kedit.comparing.verdict import verdicts


def write_board(comparison: Comparison, folder: Path) -> None:
    """Write event files.

    A contestant has a folder of its own, BASE/NAME, so that TensorBoard lays those of all into one chart. Tags are
    those of the figures behind `compare/`, with `_ci_low` and `_ci_high` for intervals; `compare/retention` has the
    number of facts as its step. The verdict and the whole report are texts in `folder` itself.

    Args:
        comparison: what was found.
        folder: where, as a logger's folder.
    """
    with SummaryWriter(str(folder)) as writer:
        for one in verdicts(comparison):
            writer.add_text(f"verdict/{one.base}", "\n\n".join(one.sentences))
        writer.add_text("report", report_text(comparison))
    for contestant in comparison.contestants:
        if contestant.status != "done":
            continue
        aspects = asked(comparison.of(contestant.base))
        figures = {**contestant.figures, "right": right(contestant, aspects), "damage": damage(contestant)}
        with SummaryWriter(str(folder / _plain(contestant.base) / _plain(contestant.name))) as writer:
            for name, figure in figures.items():
                if figure is not None:
                    _add(writer, f"compare/{name}", figure)
            for point in contestant.retention:
                _add(writer, "compare/retention", point.reliability, point.facts)
            for name, value in asdict(contestant.costs).items():
                if isinstance(value, float | int):
                    writer.add_scalar(f"compare/costs/{name}", float(value))


def _add(writer: SummaryWriter, tag: str, figure: Figure, step: int = 0) -> None:
    writer.add_scalar(tag, figure.mean, step)
    if figure.low is not None and figure.high is not None:
        writer.add_scalar(f"{tag}_ci_low", figure.low, step)
        writer.add_scalar(f"{tag}_ci_high", figure.high, step)


def _plain(name: str) -> str:
    """A name that is a folder's on every system and leads nowhere else."""
    return "".join(letter if letter.isalnum() or letter in "-. " else "_" for letter in name).strip(". ") or "_"
