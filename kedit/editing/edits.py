"""An edit: what a model is to answer from now on, and the probes by which that is judged. Knows no model and no method.

Reliability is asked by the edit's own prompt; generality by other wordings of it; locality by what no edit concerns and
what must stay; portability by what follows from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from kedit.editing.conflicts import EditConflicts, find_conflicts
from kedit.editing.plain_text import check_text
from kedit.editing.probes import Probe
from kedit.editing.problems import BadInput, refuse, refuse_together

ASPECTS = ("reliability", "generality", "locality", "portability")
TEXTS = ("id", "prompt", "target", "subject", "relation")
_MAY_BE_EMPTY = ("id", "subject", "relation")
_GROUPS = ", ".join(ASPECTS[1:]) + " or a part of one, as in locality/near or reliability/new"


@dataclass(frozen=True, slots=True)
class Edit:
    """A prompt and what the model is to say behind it.

    Args:
        id: unique within its source.
        prompt: what is asked, without trailing space.
        target: what is to be answered, without leading space.
        subject: whom it is about; empty where unknown.
        relation: what is said of it; empty where unknown.
        probes: how it is judged beside its own prompt; a probe's group begins with its aspect, as in "generality" or
            "locality/near". A "reliability/..." marks edits of some kind by their own prompt, to report them apart. The
            span of a locality probe is what is known to be right, or empty: what counts is that
            the model says what it said before.
        where: file and line, for complaints.
    """

    id: str
    prompt: str
    target: str
    subject: str = ""
    relation: str = ""
    probes: tuple[Probe, ...] = ()
    where: str = ""

    @property
    def text(self) -> str:
        """What is stored and read: prompt and target, a space between them."""
        return f"{self.prompt.rstrip()} {self.target.lstrip()}"

    @property
    def own(self) -> Probe:
        """The probe of reliability."""
        return probe(self.id, "reliability", self.prompt, self.target, where=self.where)

    @property
    def all_probes(self) -> tuple[Probe, ...]:
        """The probe of reliability, and the others."""
        return (self.own, *self.probes)

    def asked(self, aspect: str) -> list[Probe]:
        """The probes of an aspect, as in `ASPECTS`."""
        if aspect == "reliability":
            return [self.own]
        return [one for one in self.probes if one.group.split("/")[0] == aspect]


def probe(edit: str, group: str, prompt: str, target: str, number: int = 0, answers: Sequence[str] = (),
          where: str = "") -> Probe:  # fmt: skip
    """A probe of an edit from a prompt and its target; `answers` are further ones that count as right."""
    return Probe(
        f"{edit}-{group}-{number}", edit, prompt.rstrip() + " ", target.strip(), group=group, where=where,
        answers=tuple(answers),
    )  # fmt: skip


class EditSource(ABC):
    """Edits in the order in which they are made: a benchmark's file, or a made-up world."""

    name: str

    @abstractmethod
    def load(self) -> list[Edit]:
        """Read or make them; the same arguments give the same edits, in the same order."""


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves nothing.

    Raises:
        DataError: it is below 1.
    """
    if limit is not None and limit < 1:
        remedy = "give the number of edits to keep, at least 1, or null for all"
        raise BadInput("", f"limit is {limit}", remedy, "limit")


def drawn(edits: Sequence[Edit], limit: int | None = None, seed: int | None = None) -> list[Edit]:
    """The first `limit` edits, shuffled before where there is a seed."""
    edits = list(edits)
    if seed is not None:
        Random(seed).shuffle(edits)
    return edits[:limit]


def check_edits(edits: Sequence[Edit]) -> EditConflicts:
    """Refuse edits that cannot be made or judged; tell which contradict one another.

    Raises:
        DataError: an id comes twice; a text is empty, too long or holds characters that nobody sees and a model reads;
            a probe is of no known aspect. The place and the field are named.
    """
    first: dict[str, str] = {}
    for edit in edits:
        try:
            check_edit(edit, first)
        except BadInput as error:
            refuse(error)
    return find_conflicts(edits)


def check_edit(edit: Edit, first: dict[str, str]) -> Edit:
    """Refuse an edit that cannot be made or judged.

    Args:
        edit: the edit, and what is given back.
        first: places of the ids that came before; its own is added.

    Raises:
        DataError: as for `check_edits`, with all that is wrong with it.
    """
    wrong = list(_wrong(edit, first))
    first.setdefault(edit.id, _place(edit))
    refuse_together(wrong)
    return edit


def _place(edit: Edit) -> str:
    return edit.where or f"edit {edit.id!r}"


def _wrong(edit: Edit, first: Mapping[str, str]) -> Iterator[BadInput]:
    """All that keeps an edit from being made or judged; `first` has the places of earlier ids."""
    where = _place(edit)
    if edit.id in first:
        what = f"the id {edit.id[:60]!r} came before at {first[edit.id]}"
        yield BadInput(where, what, "give each edit its own", "id")
    texts = [(where, field, getattr(edit, field), field in _MAY_BE_EMPTY) for field in TEXTS]
    for number, one in enumerate(edit.probes, start=1):
        place = f"{where}, probe {number}"
        aspect = one.group.split("/")[0]
        if aspect not in ASPECTS or one.group == ASPECTS[0]:
            yield BadInput(place, f"'group' is {one.group[:60]!r}, wanted {_GROUPS}", "name one of these", "group")
        texts += [(place, "prompt", one.left, False), (place, "target", one.span, aspect == "locality")]
        texts += [(place, "answers", answer, False) for answer in one.answers]
    for place, field, text, may_be_empty in texts:
        try:
            check_text(text, place, field, may_be_empty)
        except BadInput as error:
            yield error
