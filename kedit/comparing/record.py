"""What is asked of every contestant, and everything that was measured of one with one seed. Knows no model;
`merging` makes figures of the records of several seeds.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from kedit.comparing.results import Architecture
from kedit.editing.judging import Cut
from kedit.editing.sources import DataError


@dataclass
class Judging:
    """How contestants are judged.

    Args:
        max_new_tokens: most tokens that are written freely.
        cut: where what is written ends as an answer: with its line, or with its first sentence.
        retention: judge after 1, 10, 100, ... facts, too.
        retained: most facts that are asked for then, drawn from those taught until then.
        timed: facts by whose probes generation is timed; 0 for no such figure.
        perplexity: a text file whose perplexity is asked before and after; without one it is that of texts which the
            source of the facts has, if it has any.
        qa: most questions of general knowledge that are asked before and after, of those that `compare` is given.
    """

    max_new_tokens: int = 32
    cut: Cut = "sentence"
    retention: bool = True
    retained: int = 1000
    timed: int = 32
    perplexity: str | None = None
    qa: int = 200

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("retained", 1), ("timed", 0), ("qa", 0)):
            if getattr(self, name) < least:
                raise DataError(f"judging.{name} is {getattr(self, name)}: give at least {least}")


@dataclass
class Row:
    """A probe and how it was answered after all facts.

    Args:
        probe: its id.
        fact: id of the edit that it asks for.
        cluster: what it is no independent draw from.
        group: as in "portability/one_hop".
        prompt: what was asked.
        wanted: the right answer; for locality what the model said before.
        said: what was written.
        free: 1 where that is right.
        forced: share of the given answer's tokens that are the likeliest; None where there was none to give.
        nll: mean loss of these tokens, in nats; None where there is no right answer.
        before: the same of the unedited model, for locality alone.
    """

    probe: str
    fact: str
    cluster: str
    group: str
    prompt: str
    wanted: str
    said: str
    free: float
    forced: float | None
    nll: float | None
    before: float | None


@dataclass
class Trial:
    """What one contestant did with one seed.

    Args:
        rows: every probe, after all facts.
        kept: after n facts the ids of those that were asked for, and which of them were said.
        teaching_seconds: time until all facts were learned, those of a single call.
        training_seconds: what was trained before.
        added_inference_share: (time of an answer) / (that of the unedited model) - 1.
        memory_bytes: most memory of teaching beyond what the process had before the model was loaded; on a GPU
            all of it.
        stored_bytes: what has to be kept beside the base model.
        can_take_out: whether one fact can be taken out again.
        take_out: how, or why not.
        unlearned: facts of which nothing was learned.
        perplexity: before and after.
        qa: which of the questions were answered rightly before, and after.
        in_context: of the unedited model, ids of facts and whether it says them behind their text.
        parameters: weights of the base model.
        architecture: of the base model.
    """

    rows: list[Row]
    kept: dict[int, dict[str, float]] = field(default_factory=dict)
    teaching_seconds: float = 0.0
    training_seconds: float | None = 0.0
    added_inference_share: float | None = None
    memory_bytes: float | None = None
    stored_bytes: float = 0.0
    can_take_out: bool = True
    take_out: str = ""
    unlearned: int = 0
    perplexity: tuple[float, float] | None = None
    qa: tuple[list[float], list[float]] | None = None
    in_context: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    architecture: Architecture = "causal"

    def to_json(self) -> dict[str, Any]:
        """In types that JSON has."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Trial":
        """What `to_json` gave."""
        kept = {int(count): said for count, said in record["kept"].items()}
        return cls(**record | {"rows": [Row(**row) for row in record["rows"]], "kept": kept})
