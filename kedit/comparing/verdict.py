"""Which one to use and what it costs, in three sentences a model, by plain rules from the numbers.

1. Of those with all facts in one model and with tolerable damage (`standings.TOLERABLE`), who answers most, and more
   than the model as it is; where several lead, the least damage, then the least time until all facts are learned. Those
   that cannot be told from it are named.
2. Who still says most of all facts after the largest number of them.
3. What text in the prompt does beside the best of the others; whether distillation (KILM where there is none) beats
   the best fine-tuning on inferences, and at what damage.

Nothing is said that no number says: intervals that overlap are a tie, and what was not measured is named as such.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kedit.comparing.measures import SPACE, amount, seconds, share
from kedit.comparing.results import BaseModel, Comparison, Contestant, Costs, Figure, Method
from kedit.comparing.standings import (
    TOLERABLE,
    Standing,
    damage,
    kept_after,
    leaders,
    least_damage,
    standings,
)

KNOWN = 0.2
"""Share of facts known before from which on a reader is warned."""
READ = 0.5
"""Share said rightly with the fact's text in context below which a reader is warned: who cannot read cannot teach."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison says of one model.

    Args:
        base: the model's name.
        use: names of the contestants to use. The first is recommended; the others cannot be told from it by what they
            answer and what they change, and are taught no faster.
        headline: the answer in a few words.
        sentences: use and cost; what is kept; the rivals.
    """

    base: str
    use: tuple[str, ...]
    headline: str
    sentences: tuple[str, str, str]


def verdicts(comparison: Comparison) -> list[Verdict]:
    """One of each model that has contestants, in the order of the models."""
    return [
        verdict(base.name, group, comparison.facts.count)
        for base in comparison.bases
        if (group := comparison.of(base.name))
    ]


def verdict(base: str, group: Sequence[Contestant], facts: int) -> Verdict:
    """What is to be said of the contestants of one model that were taught so many facts."""
    those = standings(group)
    use = _to_use(those, facts)
    headline = use[0].name if use else "None to recommend"
    sentences = (_first(group, those, use, facts), _second(group), f"{_prompt(group, those)}; {_rivalry(group)}.")
    one, two, three = map(_capital, sentences)
    return Verdict(base, tuple(one.name for one in use), _capital(headline), (one, two, three))


def cautions(comparison: Comparison) -> list[str]:
    """What a reader must know first: the comparison's own warnings, what models knew before, who failed."""
    found = list(comparison.warnings)
    for base in comparison.bases:
        if base.knows and base.knows.mean >= KNOWN:
            found.append(f"{base.name} knows {share(base.knows.mean)} of the facts already: nothing to learn there.")
        if not _reads(base):
            assert base.knows_in_context
            found.append(
                f"{base.name} says only {share(base.knows_in_context.mean)} of the facts with their text before the "
                "question: as a teacher it has little to give, and text in the prompt little to work with."
            )
    if failed := [one.name for one in comparison.contestants if one.status == "failed"]:
        found.append(f"Failed, and so not compared: {_listed(failed)}.")
    return found


def _reads(base: BaseModel) -> bool:
    return base.knows_in_context is None or base.knows_in_context.mean >= READ


def _to_use(those: Sequence[Standing], facts: int) -> list[Standing]:
    fit = [one for one in _taught(those) if one.tolerable and _above_base(one, those)]
    return sorted(least_damage(leaders(fit)), key=lambda one: _teaching(one.contestant.costs, facts))


def _taught(those: Iterable[Standing]) -> list[Standing]:
    return [one for one in those if one.contestant.together and one.contestant.method != "base"]


def _above_base(one: Standing, those: Iterable[Standing]) -> bool:
    return all(_answers_more(one, base) for base in those if base.contestant.method == "base")


def _answers_more(one: Standing, other: Standing) -> bool:
    return one.right.mean > other.right.mean and not one.right.ties(other.right)


def _teaching(costs: Costs, facts: int) -> float:
    """Seconds until so many facts are learned; infinite where they are not known."""
    if costs.seconds_per_fact is None or costs.training_seconds is None:
        return float("inf")
    return costs.training_seconds + facts * costs.seconds_per_fact


def _first(group: Sequence[Contestant], those: list[Standing], use: list[Standing], facts: int) -> str:
    taught = _taught(those)
    if not taught:
        if not any(one.status == "done" and one.method != "base" for one in group):
            return "no contestant finished, so none can be recommended."
        return "none can be recommended: of no contestant with all facts in one model was enough measured."
    ranked = {one.name for one in taught}
    candidates = [one for one in group if one.status == "done" and one.together and one.method != "base"]
    left_out = [one.name for one in candidates if one.name not in ranked]
    rest = f"; not ranked, as figures are missing: {_listed(left_out)}" if left_out else ""
    if not use:
        return f"{_no_one(taught, those)}{rest}."
    one, ties = use[0], use[1:]
    costly = leaders([other for other in taught if not other.tolerable and _answers_more(other, one)])
    if costly:
        most_of_all = costly[0]
        harm = f"but changes {share(most_of_all.damage.mean)}"
        rest = f"; {most_of_all.name} answers {share(most_of_all.right.mean)}, {harm}{rest}"
    level = [other for other in taught if other is not one and other.right.ties(one.right)]
    most = ", the most" if len(taught) > 1 and not costly and not level else ""
    gentler = all(one.damage.mean < other.damage.mean and not one.damage.ties(other.damage) for other in level)
    least = ", the least of those that answer so much" if level and gentler else ""
    if ties:
        rest = f"; {_listed([other.name for other in ties])} cannot be told from it{_slower(use, facts)}{rest}"
    return (
        f"use {one.name}: taught {_facts(facts)}, it rightly answers {interval(one.right)} of what is asked about "
        f"them{most}, and changes {interval(one.damage)} of unrelated answers{least}; "
        f"{_cost(one.contestant.costs)}{rest}."
    )


def _slower(use: Sequence[Standing], facts: int) -> str:
    times = [_teaching(one.contestant.costs, facts) for one in use]
    if times[0] == float("inf"):
        return ", nor by its costs, which were not measured"
    return " and is taught no faster" if len(use) == 2 else " and are taught no faster"


def _facts(number: int) -> str:
    return f"{number:,} fact{'s' if number != 1 else ''}"


def _no_one(taught: list[Standing], those: list[Standing]) -> str:
    better = [one for one in taught if _above_base(one, those)]
    if not better:
        return "none can be recommended: no contestant can be told from the model as it is by what it answers"
    least = [f"{one.name} ({interval(one.damage)}, for {share(one.right.mean)} right)" for one in least_damage(better)]
    which = f"as {least[0]} does" if len(better) == 1 else f"{_listed(least)} the least"
    return (
        "none can be recommended: whoever answers more than the model as it is changes more than "
        f"{share(TOLERABLE)} of unrelated answers, {which}"
    )


def _second(group: Sequence[Contestant]) -> str:
    facts, those = kept_after(group)
    if not those:
        return "how many facts are kept was not measured."
    (first, most), rest = those[0], those[1:]
    after = f"after {_facts(facts)}"
    if not rest:
        return f"{after} {first.name} still says {interval(most)} of them; of no other was it measured."
    ties = [one.name for one, figure in rest if figure.ties(most)]
    behind = [(one, figure) for one, figure in rest if not figure.ties(most)]
    least = ""
    if behind:
        last, fewest = behind[-1]
        alone = len(behind) > 1 and not fewest.ties(behind[-2][1])
        least = f"; {last.name} says {share(fewest.mean)}{', the fewest' if alone else ''}"
    if ties:
        return (
            f"{after} {_listed([first.name, *ties])} cannot be told apart by how many of them they still say, "
            f"{share(most.mean)} by the first{least}."
        )
    return f"{after} {first.name} still says {interval(most)} of all of them, the most{least}."


def _prompt(group: Sequence[Contestant], those: list[Standing]) -> str:
    prompts = [one for one in _taught(those) if one.contestant.method == "prompt"]
    if not prompts:
        tried = [one for one in group if one.method == "prompt"]
        how = {"done": "was not fully measured", "failed": "failed", "not applicable": "does not apply"}
        return f"{tried[0].name} {how[tried[0].status]}" if tried else "text in the prompt was not tried"
    us = leaders(prompts)[0]
    untrained = ", with nothing trained," if us.contestant.costs.training_seconds == 0 else ""
    does = f"{us.name}{untrained} answers {share(us.right.mean)} and changes {share(us.damage.mean)}"
    others = leaders([one for one in _taught(those) if one.contestant.method != "prompt" and one.tolerable])
    if not others:
        return does
    them = others[0]
    if us.right.ties(them.right) and us.damage.ties(them.damage):
        return f"{does}, a tie with {them.name} ({share(them.right.mean)} and {share(them.damage.mean)})"
    way = _against(us.right, them.right, "more than", "less than", "level with")
    return f"{does}: {way} {them.name} ({share(them.right.mean)}), {_harm(us.damage, them.damage)}"


def _harm(ours: Figure, theirs: Figure) -> str:
    way = _against(ours, theirs, "at more damage", "at less damage", "with a tie in damage")
    return f"{way} ({share(ours.mean)} against {share(theirs.mean)})"


def _rivalry(group: Sequence[Contestant]) -> str:
    done = [one for one in group if one.status == "done"]
    tuned = _by_inference([one for one in done if one.method in ("finetune", "lora")])
    ours = _by_inference([one for one in done if one.method == "distill"])
    ours = ours or _by_inference([one for one in done if one.method == "kilm"])
    if not ours or not tuned:
        sides: list[tuple[Contestant | None, str, set[Method]]] = [
            (ours, "distillation or KILM", {"distill", "kilm"}),
            (tuned, "fine-tuning", {"finetune", "lora"}),
        ]
        return " and ".join(_unmeasured(group, name, methods) for one, name, methods in sides if one is None)
    us, them = ours.figures["portability/free"], tuned.figures["portability/free"]
    way = _against(us, them, "beats", "is behind", "cannot be told from")
    said = f"{ours.name} {way} {tuned.name} on inferences ({share(us.mean)} against {share(them.mean)})"
    mine, theirs = damage(ours), damage(tuned)
    if mine is None or theirs is None:
        return f"{said}; damage was not measured of both"
    return f"{said}, {_harm(mine, theirs)}"


def _unmeasured(group: Sequence[Contestant], name: str, methods: set[Method]) -> str:
    tried = any(one.method in methods for one in group)
    return f"inferences of {name} were not measured" if tried else f"{name} was not tried"


def _by_inference(those: Iterable[Contestant]) -> Contestant | None:
    with_it = [one for one in those if "portability/free" in one.figures]
    together = [one for one in with_it if one.together]  # one model for each fact is an easier task
    return max(together or with_it, key=lambda one: one.figures["portability/free"].mean, default=None)


def _against(ours: Figure, theirs: Figure, above: str, below: str, tie: str) -> str:
    return tie if ours.ties(theirs) else above if ours.mean > theirs.mean else below


def interval(figure: Figure) -> str:
    """A share with its interval, as in "93 % [91–95]"."""
    if figure.low is None or figure.high is None:
        return share(figure.mean)
    low, high = (share(end).removesuffix(f"{SPACE}%") for end in (figure.low, figure.high))
    return f"{share(figure.mean)} [{low}–{high}]"


def _cost(costs: Costs) -> str:
    takes: list[str] = []
    if costs.training_seconds is not None:
        takes.append(f"{seconds(costs.training_seconds)} of training once" if costs.training_seconds else "no training")
    if costs.seconds_per_fact is not None:
        takes.append(f"{seconds(costs.seconds_per_fact)} a fact" if costs.seconds_per_fact else "no time a fact")
    does = [f"takes {_listed(takes)}"] if takes else []
    if costs.added_inference_share is not None:
        does.append(slower(costs.added_inference_share))
    if costs.bytes_per_fact is not None:
        does.append(f"stores {amount(costs.bytes_per_fact)} a fact")
    if costs.can_take_out is not None:
        does.append(f"{'can' if costs.can_take_out else 'cannot'} take a fact out again")
    return f"it {_listed(does)}" if does else "what it costs was not measured"


def slower(added: float) -> str:
    """What is added to the time of an answer, in words."""
    if abs(added) < 0.005:
        return "answers as fast as before"
    return f"answers {share(abs(added))} {'slower' if added > 0 else 'faster'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
