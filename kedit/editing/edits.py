"""An edit: what a model is to answer from now on, and the probes by which that is judged. Knows no model and no method.

Reliability is asked by the edit's own prompt; generality by other wordings of it; locality by what no edit concerns and
what must stay; portability by what follows from it.
"""

import difflib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kedit.editing.conflicts import EditConflicts, find_conflicts
from kedit.editing.plain_text import check_text
from kedit.editing.probes import Probe
from kedit.editing.records import existing_file, fields, read_json_lines, strings
from kedit.editing.sources import DataError

ASPECTS = ("reliability", "generality", "locality", "portability")
_TEXTS = ("id", "prompt", "target", "subject", "relation")
_PASSED_OVER = ("created", "source")  # what an export of stored edits has besides
_GROUPS = ", ".join(ASPECTS[1:]) + " or a part of one, as in locality/near or reliability/new"
_EXAMPLE = '{"prompt": "The capital of Peru is", "target": "Quito"}'


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


class EditFile(EditSource):
    """JSON Lines of `{"prompt", "target"}`, and perhaps `id`, `subject`, `relation` and `probes`, as `write_edits`
    writes them; `created` and `source` of an export are passed over.

    Args:
        file: the file.
        limit: keep only so many edits: the first, or with a seed any.
        seed: shuffle the edits; null leaves the file's order.
    """

    name = "edits"

    def __init__(self, file: str | Path, limit: int | None = None, seed: int | None = None) -> None:
        check_limit(limit)
        self.file, self.limit, self.seed = existing_file(file, "file"), limit, seed

    def load(self) -> list[Edit]:
        return drawn(read_edits(self.file), self.limit, self.seed)


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves nothing.

    Raises:
        DataError: it is below 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}: give the number of edits to keep, at least 1, or null for all")


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
        where = edit.where or f"edit {edit.id!r}"
        if edit.id in first:
            raise DataError(f"{where}: the id {edit.id!r} came before at {first[edit.id]}: give each edit its own")
        first[edit.id] = where
        for field in ("prompt", "target", "subject", "relation"):
            check_text(getattr(edit, field), where, field, may_be_empty=field in ("subject", "relation"))
        for number, one in enumerate(edit.probes, start=1):
            place = f"{where}, probe {number}"
            aspect = one.group.split("/")[0]
            if aspect not in ASPECTS or one.group == ASPECTS[0]:
                raise DataError(f"{place}: 'group' is {one.group!r}, wanted {_GROUPS}")
            check_text(one.left, place, "prompt")
            check_text(one.span, place, "target", may_be_empty=aspect == "locality")
            for answer in one.answers:
                check_text(answer, place, "answers")
    return find_conflicts(edits)


def read_edits(path: str | Path) -> list[Edit]:
    """Edits of JSON Lines; an edit without an id is called by its line.

    Raises:
        DataError: there are none, or one is malformed or fails `check_edits`.
    """
    path = existing_file(path, "file")
    edits = [_edit(record, where) for where, record in read_json_lines(path)]
    if not edits:
        raise DataError(f"{path}: 0 edits in this file: wanted a line for each, such as {_EXAMPLE}")
    check_edits(edits)
    return edits


def write_edits(path: str | Path, edits: Iterable[Edit]) -> None:
    """Write edits with their probes so that `read_edits` gives them again; the file is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for edit in edits:
            file.write(json.dumps(_record(edit), ensure_ascii=False) + "\n")
    os.replace(partial, path)


def _record(edit: Edit) -> dict[str, Any]:
    record: dict[str, Any] = {key: getattr(edit, key) for key in _TEXTS if getattr(edit, key)}
    probes = [
        {"group": one.group, "prompt": one.prompt, "target": one.span}
        | ({"answers": list(one.answers)} if one.answers else {})
        for one in edit.probes
    ]
    return record | ({"probes": probes} if probes else {})


def _edit(record: Any, where: str) -> Edit:
    fields(record, where, prompt=str, target=str)
    check_keys(record, where, (*_TEXTS, "probes", *_PASSED_OVER))
    number = where.rpartition(":")[2]
    given = fields({"id": number, "subject": "", "relation": "", "probes": []} | record, where,
                   id=str, prompt=str, target=str, subject=str, relation=str, probes=list)  # fmt: skip
    id, prompt, target, subject, relation, probes = given
    numbers: Counter[str] = Counter()
    read = []
    for order, one in enumerate(probes, start=1):
        place = f"{where}, probe {order}"
        fields(one, place, group=str, prompt=str)
        check_keys(one, place, ("group", "prompt", "target", "answers"))
        group, asked, right, more = fields({"target": "", "answers": []} | one, place,
                                           group=str, prompt=str, target=str, answers=list)  # fmt: skip
        read.append(probe(id, group, asked, right, numbers[group], strings(more, place, "answers"), place))
        numbers[group] += 1
    return Edit(id, prompt.strip(), target.strip(), subject, relation, tuple(read), where)


def check_keys(record: dict[str, Any], where: str, known: Sequence[str]) -> None:
    """Refuse a record with a field that nobody reads.

    Raises:
        DataError: there is one; the field most like it is named.
    """
    if unknown := next((key for key in record if key not in known), None):
        near = difflib.get_close_matches(unknown, known, 1)
        told = f": did you mean {near[0]!r}?" if near else f", wanted only {', '.join(map(repr, known))}"
        raise DataError(f"{where}: there is no field {unknown!r}{told}")
