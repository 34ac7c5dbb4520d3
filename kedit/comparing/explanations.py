"""What a report says beside its numbers, on the page and in text: what was compared, and what the words mean."""

from datetime import date

from kedit.comparing.columns import all_columns
from kedit.comparing.measures import amount, measure, seconds, share
from kedit.comparing.results import Comparison, Contestant
from kedit.comparing.standings import TOLERABLE, Standing, asked
from kedit.editing.stream_report import KINDS


def about(comparison: Comparison) -> str:
    """Day, facts and seeds, in a line."""
    facts, seeds = comparison.facts, comparison.seeds
    probes = f", {facts.probes:,} probes" if facts.probes else ""
    day = date.fromisoformat(comparison.date)
    number = f"{facts.count:,} fact{'s' if facts.count != 1 else ''}"
    return (
        f"{day.day} {day:%B %Y} · {number} ({facts.source}){probes} · "
        f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"
    )


def about_base(comparison: Comparison, name: str) -> str:
    """A model, its size and what it knew before, in a line."""
    base = next(one for one in comparison.bases if one.name == name)
    parts = [f"{base.name}, {base.architecture}"]
    if base.parameters:
        parts.append(f"{_number(base.parameters)} weights")
    if base.knows:
        parts.append(f"knew {share(base.knows.mean)} of the facts")
    return " · ".join(parts)


def note(one: Contestant) -> str:
    """What a reader must know of a contestant's figures; mostly nothing."""
    apart = "" if one.together else "each fact in a model of its own"
    unlearned = f"nothing was learned of {one.unlearned:,} facts" if one.unlearned else ""
    return "; ".join(filter(None, [apart, unlearned]))


def prices(one: Standing) -> list[tuple[str, str]]:
    """What a contestant gives and costs, as pairs of a name and a value; what was not measured is left out."""
    costs = one.contestant.costs
    found = [
        ("new facts right", share(one.right.mean)),
        ("unrelated answers changed", share(one.damage.mean)),
    ]
    if costs.seconds_per_fact is not None:
        found.append(("to teach a fact", seconds(costs.seconds_per_fact)))
    if costs.training_seconds is not None:
        found.append(("training, once", seconds(costs.training_seconds)))
    if costs.added_inference_share is not None:
        found.append(("slower answers", share(costs.added_inference_share, sign=True)))
    if costs.bytes_per_fact is not None:
        found.append(("stored a fact", amount(costs.bytes_per_fact)))
    if costs.can_take_out is not None:
        found.append(("can be taken out", "yes" if costs.can_take_out else "no"))
    return found


def words(comparison: Comparison) -> list[tuple[str, str]]:
    """What the figures mean, as pairs of a name and a text."""
    new = {"reliability": "as told", "generality": "reworded", "portability": "inferred"}
    parts = ", ".join(new[aspect] for aspect in asked(comparison.contestants))
    found = [
        ("New facts right", f"The mean of these shares: {parts}. An answer is written freely (greedy decoding), cut at "
         "its end and compared once normalised."),
        ("Damage", "The share of answers to unrelated questions that are not what the model said before."),
        ("Recommended", f"With all facts in one model and at most {share(TOLERABLE)} of unrelated answers changed: who "
         "answers most of the new; of those that cannot be told apart, the least damage, then the least time until all "
         "facts are learned."),
        ("Intervals", "95 %, by drawing facts with replacement; for a mean of shares the mean of their ends, which is "
         "wider, if anything. Those that overlap are called a tie."),
        ("Forced", "The right answer is given; the share of its tokens that are the likeliest. It tells the answer's "
         "length and beginning, and so is never mixed with free answers."),
        ("Costs", "On the machine and with the settings of the command below; times say little of other machines. An "
         "answer's time beside the model as it is has no interval: a few per cent are noise, of models that answer in "
         "a few milliseconds some ten, and none is marked as best. Adapters (LoRA, distillation) stand beside the "
         "weights; merged into them, as `export` does, they take no time."),
    ]  # fmt: skip
    columns = (column for table in all_columns(comparison).values() for column in table)
    kinds = [kind for column in columns if not column.key.endswith(KINDS) and (kind := measure(column.key))]
    return found + [(kind.label, f"{kind.meaning[:1].upper()}{kind.meaning[1:]}.") for kind in kinds]


def _number(count: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"
