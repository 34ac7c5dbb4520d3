"""Files of edits, one a line, and of definitions beside them. Knows no model and no method."""

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.editing.edits import TEXTS, Edit, EditSource, check_edit, check_limit, drawn, probe
from kedit.editing.facts import read_facts
from kedit.editing.probes import Fact, Probe
from kedit.editing.problems import BadInput, each, refuse_empty, refuse_together
from kedit.editing.records import existing_file, fields, read_json_lines, strings

_PASSED_OVER = ("created", "source")  # what an export of stored edits has besides
_ASKED = ("group", "prompt", "target", "answers")
_EXAMPLE = '{"prompt": "The capital of Peru is", "target": "Quito"}'


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
        """Definitions of subjects all of whose edits, of those that `load` gives, are among these.

        Raises:
            DataError: the file of definitions is malformed.
        """
        if self.definitions is None:
            return []
        given = {edit.id for edit in edits}
        whole = {one.subject for one in edits} - {one.subject for one in self.load() if one.id not in given}
        return [fact for fact in read_facts(self.definitions) if fact.name in whole]

    def undefined(self) -> list[str]:
        """Subjects that the file of definitions has not.

        Raises:
            DataError: the file of definitions is malformed, or none is of a subject.
        """
        if self.definitions is None:
            return []
        facts = read_facts(self.definitions)
        subjects = dict.fromkeys(one.subject for one in read_edits(self.file) if one.subject)
        defined = {fact.name for fact in facts}
        if not defined & subjects.keys():
            what = f"no edit of {self.file} has {facts[0].name[:60]!r} or another of these names as its subject"
            raise BadInput(str(self.definitions), what, "give edits the subject as it is written here", "subject")
        return [name for name in subjects if name not in defined]


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
    record: dict[str, Any] = {key: getattr(edit, key) for key in TEXTS if getattr(edit, key)}
    probes = [
        {"group": one.group, "prompt": one.prompt, "target": one.span}
        | ({"answers": list(one.answers)} if one.answers else {})
        for one in edit.probes
    ]
    return record | ({"probes": probes} if probes else {})


def _edit(record: Any, where: str) -> Edit:
    defaults = {"id": where.rpartition(":")[2], "subject": "", "relation": "", "probes": []}
    given = _given(record, where, ("prompt", "target"), defaults, (*TEXTS, "probes", *_PASSED_OVER))
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
