"""An edit: what a model is to answer from now on, and the probes by which that is judged. Knows no model and no method.

Reliability is asked by the edit's own prompt; generality by other wordings of it; locality by what no edit concerns and
what must stay; portability by what follows from it.
"""

import difflib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kedit.editing.conflicts import EditConflicts, find_conflicts
from kedit.editing.facts import read_facts
from kedit.editing.plain_text import check_text
from kedit.editing.probes import Fact, Probe
from kedit.editing.problems import BadInput, each, refuse, refuse_empty, refuse_together
from kedit.editing.records import existing_file, fields, read_json_lines, strings

ASPECTS = ("reliability", "generality", "locality", "portability")
_TEXTS = ("id", "prompt", "target", "subject", "relation")
_MAY_BE_EMPTY = ("id", "subject", "relation")
_PASSED_OVER = ("created", "source")  # what an export of stored edits has besides
_ASKED = ("group", "prompt", "target", "answers")
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


class EditFile(EditSource):
    """JSON Lines of `{"prompt", "target"}`, and perhaps `id`, `subject`, `relation` and `probes`, as `write_edits`
    writes them; `created` and `source` of an export are passed over. A probe is `{"group", "prompt", "target"}`: the
    group is generality, portability or locality, or a part of one as portability/one_hop; of locality, whose answer is
    to stay what it was, the target may be left empty.

    Args:
        file: the file.
        limit: keep only so many edits: the first, or with a seed any.
        seed: shuffle the edits; null leaves the file's order.
        definitions: a file of facts (`read_facts`) with definitions of subjects; their names are the edits' subjects.
    """

    name = "edits"

    def __init__(
        self,
        file: str | Path,
        limit: int | None = None,
        seed: int | None = None,
        definitions: str | Path | None = None,
    ) -> None:
        check_limit(limit)
        self.file, self.limit, self.seed = existing_file(file, "file"), limit, seed
        self.definitions = None if definitions is None else existing_file(definitions, "definitions")

    def load(self) -> list[Edit]:
        return drawn(read_edits(self.file), self.limit, self.seed)

    def define(self, edits: Sequence[Edit]) -> list[Fact]:
        """Definitions of subjects all of whose edits are among these: what a definition tells, all of them tell.

        Raises:
            DataError: the file of definitions is malformed, or none is of a subject.
        """
        if self.definitions is None:
            return []
        facts, all_edits = read_facts(self.definitions), self.load()
        subjects = {one.subject for one in all_edits} - {""}
        if not any(fact.name in subjects for fact in facts):
            what = f"no edit of {self.file} has {facts[0].name[:60]!r} or another of these names as its subject"
            raise BadInput(str(self.definitions), what, "give edits the subject as it is written here", "subject")
        given = {edit.id for edit in edits}
        partly = {one.subject for one in all_edits if one.id not in given}
        return [fact for fact in facts if fact.name in subjects - partly]


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
    texts = [(where, field, getattr(edit, field), field in _MAY_BE_EMPTY) for field in _TEXTS]
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


def read_edits(path: str | Path) -> list[Edit]:
    """Edits of JSON Lines; an edit without an id is called by its line.

    Raises:
        DataError: there are none, or one is malformed or fails `check_edits`.
    """
    path = existing_file(path, "file")
    first: dict[str, str] = {}
    edits = list(each(read_json_lines(path), lambda record, where: check_edit(_edit(record, where), first)))
    if not edits:
        refuse_empty(BadInput(str(path), "0 edits in this file", f"wanted a line for each, such as {_EXAMPLE}"))
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
    defaults = {"id": where.rpartition(":")[2], "subject": "", "relation": "", "probes": []}
    given = _given(record, where, ("prompt", "target"), defaults, (*_TEXTS, "probes", *_PASSED_OVER))
    numbers: Counter[str] = Counter()
    probes: list[Probe] = []
    wrong: list[BadInput] = []
    for order, one in enumerate(given["probes"], start=1):
        place = f"{where}, probe {order}"
        try:
            asked = _given(one, place, ("group", "prompt"), {"target": "", "answers": []}, _ASKED)
            answers, group = strings(asked["answers"], place, "answers"), asked["group"]
        except BadInput as error:
            wrong += [error, *error.more]
        else:
            probes.append(probe(given["id"], group, asked["prompt"], asked["target"], numbers[group], answers, place))
            numbers[group] += 1
    refuse_together(wrong)
    prompt, target = given["prompt"].strip(), given["target"].strip()
    return Edit(given["id"], prompt, target, given["subject"], given["relation"], tuple(probes), where)


def _given(
    record: Any, where: str, texts: Sequence[str], defaults: Mapping[str, Any], known: Sequence[str]
) -> dict[str, Any]:
    """A record that has these texts and, by what they are where they are left out, further fields; none is unknown."""
    wrong: list[BadInput] = []
    optional = {key: type(value) for key, value in defaults.items() if isinstance(record, dict) and key in record}
    try:
        fields(record, where, **dict.fromkeys(texts, str), **optional)
    except BadInput as error:
        wrong += [error, *error.more]
    if isinstance(record, dict):
        told = " ".join(error.remedy for error in wrong)  # where a field is missing, the one that is meant
        wrong += [error for error in _unknown(record, where, known) if repr(error.field) not in told]
    refuse_together(wrong)
    return {**defaults, **record}


def check_keys(record: dict[str, Any], where: str, known: Sequence[str]) -> None:
    """Refuse a record with a field that nobody reads.

    Raises:
        DataError: there is one; the field most like it is named.
    """
    refuse_together(_unknown(record, where, known))


def _unknown(record: dict[str, Any], where: str, known: Sequence[str]) -> list[BadInput]:
    found = []
    for key in (key for key in record if key not in known):
        near = difflib.get_close_matches(key[:60], known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else "take it out"
        wanted = "" if near else f", wanted only {', '.join(map(repr, known))}"
        found.append(BadInput(where, f"there is no field {key[:60]!r}{wanted}", remedy, key[:60]))
    return found
