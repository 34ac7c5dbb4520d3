"""What a comparison found, as typed records: models, facts, contestants with figures, costs and examples.

Says nothing of how it was found and draws no conclusion. Values are those of JSON, so that a record is the same after
it was written and read (`results_file`).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

Method = Literal["base", "prompt", "finetune", "lora", "distill", "recipe", "kilm"]
"""The model as it is; a fact's text before the question; fine-tuning; fine-tuned adapters; the three of kedit."""
Status = Literal["done", "failed", "not applicable"]
Architecture = Literal["causal", "encoder-decoder"]
Aspect = Literal["reliability", "generality", "locality", "portability"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over facts and seeds.

    Args:
        mean: the mean.
        low: lower end of its 95 % interval; None, or nan, where there is none.
        high: upper end.
        by_seed: the mean of each seed, in the order of the comparison's seeds.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    by_seed: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for end in ("low", "high"):
            value = getattr(self, end)
            if value is not None and math.isnan(value):  # one cluster has no interval
                object.__setattr__(self, end, None)

    def ties(self, other: "Figure") -> bool:
        """Whether the two cannot be told apart: their intervals overlap, or one has none."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Kept:
    """A point of the retention curve.

    Args:
        facts: how many had been taught.
        reliability: share of all of them that are still said, by free decoding.
    """

    facts: int
    reliability: Figure


@dataclass(frozen=True, slots=True)
class Costs:
    """What a contestant takes; None is what was not measured.

    Args:
        training_seconds: once, whatever the facts are, as an editor's networks need it; 0 where nothing is trained.
        seconds_per_fact: until a fact is learned: the time of teaching all of them over their number.
        added_inference_share: (time of an answer) / (that of the unedited model) - 1.
        memory_bytes: most memory of teaching, the model included.
        bytes_per_fact: what is stored for a fact: for changed weights their size over the number of facts.
        can_take_out: whether one fact can be taken out again, the others being left.
        take_out: how, or why not, in a few words.
    """

    training_seconds: float | None = None
    seconds_per_fact: float | None = None
    added_inference_share: float | None = None
    memory_bytes: float | None = None
    bytes_per_fact: float | None = None
    can_take_out: bool | None = None
    take_out: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A probe with the answer that a contestant really gave."""

    prompt: str
    wanted: str
    said: str
    aspect: Aspect
    right: bool


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way of getting the facts into one model.

    Args:
        name: unique among the contestants of its base.
        base: name of the model it started from.
        method: what kind it is.
        status: whether it has figures.
        reason: why it has none; empty where it is done.
        together: all facts are in one model. Otherwise each was taught to a model of its own, which says nothing of
            how many one model holds: such a contestant is shown, and never recommended.
        figures: by name, see `measures.measure`.
        retention: share of facts kept after 1, 10, 100, ... facts, ascending.
        costs: what it takes.
        examples: some probes, the same of every contestant.
        unlearned: facts of which nothing was learned, the most of a seed.
    """

    name: str
    base: str
    method: Method
    status: Status = "done"
    reason: str = ""
    together: bool = True
    figures: dict[str, Figure] = field(default_factory=dict)
    retention: tuple[Kept, ...] = ()
    costs: Costs = Costs()
    examples: tuple[Example, ...] = ()
    unlearned: int = 0


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model that the facts are taught to.

    Args:
        name: unique among the models.
        architecture: of which kind.
        parameters: how many weights.
        knows: share of the facts it says rightly before.
        knows_in_context: share it says rightly with the fact's text before the question.
    """

    name: str
    architecture: Architecture
    parameters: int | None = None
    knows: Figure | None = None
    knows_in_context: Figure | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is taught: how many facts, from where, and how many probes ask for them."""

    count: int
    source: str
    probes: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Contestants side by side.

    Args:
        title: what is compared.
        date: the day, as in 2026-11-22.
        command: runs it again.
        config: the configuration, as text.
        seeds: of the runs.
        facts: what was taught.
        bases: the models, in the order of the report.
        contestants: in the order of the report.
        warnings: what a reader must know beside what `verdict.cautions` finds in the numbers.
    """

    title: str
    date: str
    command: str
    config: str
    seeds: tuple[int, ...]
    facts: Facts
    bases: tuple[BaseModel, ...]
    contestants: tuple[Contestant, ...]
    warnings: tuple[str, ...] = ()

    def of(self, base: str) -> list[Contestant]:
        """The contestants of a model."""
        return [one for one in self.contestants if one.base == base]
