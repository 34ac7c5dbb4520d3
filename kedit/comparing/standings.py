"""Contestants by the two numbers that a choice is made by: how much of the new is answered, and how much of the old is
changed; and who leads where intervals overlap. Knows numbers only.

    right  = mean of reliability, generality and portability      free decoding, those that were measured of the group
    damage = 1 - locality                                         free decoding

The interval of `right` is from the mean of the lower ends to that of the upper ones: about its own, or wider.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kedit.comparing.results import Contestant, Figure, Kept

TOLERABLE = 0.1
"""Share of unrelated answers that may change: who certainly changes more is not recommended."""
NEW = ("reliability", "generality", "portability")
"""What is asked about new facts."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A contestant with its two numbers."""

    contestant: Contestant
    right: Figure
    damage: Figure

    @property
    def name(self) -> str:
        return self.contestant.name

    @property
    def tolerable(self) -> bool:
        """Whether its damage may be `TOLERABLE`: its interval (its mean where it has none) does not lie above."""
        return (self.damage.mean if self.damage.low is None else self.damage.low) <= TOLERABLE


def asked(group: Iterable[Contestant]) -> tuple[str, ...]:
    """What about new facts was measured of anyone in the group."""
    done = [one for one in group if one.status == "done"]
    return tuple(aspect for aspect in NEW if any(f"{aspect}/free" in one.figures for one in done))


def right(one: Contestant, aspects: Sequence[str]) -> Figure | None:
    """How much of the new it answers; None where one of the aspects was not measured of it, or there is none."""
    found = [one.figures[f"{aspect}/free"] for aspect in aspects if f"{aspect}/free" in one.figures]
    return _mean(found) if found and len(found) == len(aspects) else None


def damage(one: Contestant) -> Figure | None:
    """How much of the old it changes; None where locality was not measured."""
    if (kept := one.figures.get("locality/free")) is None:
        return None
    by_seed = tuple(1 - value for value in kept.by_seed)
    if kept.low is None or kept.high is None:
        return Figure(1 - kept.mean, by_seed=by_seed)
    return Figure(1 - kept.mean, 1 - kept.high, 1 - kept.low, by_seed)


def standings(group: Sequence[Contestant]) -> list[Standing]:
    """All that are done and have both numbers, in their order; the model as it is among them."""
    aspects = asked(group)
    found = []
    for one in group:
        ours, harm = right(one, aspects), damage(one)
        if one.status == "done" and ours is not None and harm is not None:
            found.append(Standing(one, ours, harm))
    return found


def leaders(those: Sequence[Standing]) -> list[Standing]:
    """Who answers most, best mean first, with all that cannot be told apart from it."""
    ordered = sorted(those, key=lambda one: -one.right.mean)
    return [one for one in ordered if one is ordered[0] or one.right.ties(ordered[0].right)]


def least_damage(those: Sequence[Standing]) -> list[Standing]:
    """Who changes least, with all that cannot be told apart from it, in the given order."""
    least = min(those, key=lambda one: one.damage.mean, default=None)
    return [one for one in those if least and (one is least or one.damage.ties(least.damage))]


def kept_after(group: Iterable[Contestant]) -> tuple[int, list[tuple[Contestant, Figure]]]:
    """The largest number of facts after which at least two contestants were asked for all of them (one, where no two
    were), and what each kept then, most first. Only of those with all facts in one model; (0, []) where there is none.
    """
    curves = [one for one in group if one.together and one.status == "done" and one.method != "base"]
    at: dict[int, list[tuple[Contestant, Figure]]] = {}
    for one in curves:
        for point in one.retention:
            at.setdefault(point.facts, []).append((one, point.reliability))
    if not at:
        return 0, []
    wanted = min(2, max(map(len, at.values())))
    facts = max(number for number, those in at.items() if len(those) >= wanted)
    return facts, sorted(at[facts], key=lambda pair: -pair[1].mean)


def kept(one: Contestant, facts: int) -> Kept | None:
    """The point of its curve after so many facts."""
    return next((point for point in one.retention if point.facts == facts), None)


def _mean(figures: Sequence[Figure]) -> Figure:
    def over(values: Iterable[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return sum(there) / len(there) if len(there) == len(figures) else None

    seeds = min(len(one.by_seed) for one in figures)
    by_seed = tuple(sum(one.by_seed[seed] for one in figures) / len(figures) for seed in range(seeds))
    mean = sum(one.mean for one in figures) / len(figures)
    return Figure(mean, over(one.low for one in figures), over(one.high for one in figures), by_seed)
