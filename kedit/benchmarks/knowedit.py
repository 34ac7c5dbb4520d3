"""KnowEdit and RippleEdits: edits with what follows from them and what must stay. Knows the files only."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.benchmarks.edit_tables import EditTable, texts
from kedit.editing.edits import Edit
from kedit.editing.probes import Probe
from kedit.editing.problems import BadInput
from kedit.editing.records import fields

LOCALITY = ("Relation_Specificity", "Forgetfulness")
FOLLOWING = ("Reasoning", "Subject_Aliasing", "Logical_Generalization")
RIPPLES = ("Logical_Generalization", "Compositionality_I", "Compositionality_II", "Subject_Aliasing")
_VERB = re.compile(r" (?:is followed by|follows|is|are)(?= \S)")
"""How RippleEdits' templates end."""


class KnowEdit(EditTable):
    """KnowEdit's wiki_counterfact, wiki_recent (both from RippleEdits) and WikiBio, a row for each edit.

    `{subject, prompt, target_new, portability{KIND: [{prompt, ground_truth}]}, locality{KIND: [...]}}`; WikiBio calls
    them `{concept, text, labels, locality}`, and its targets are whole sentences. A `ground_truth` is a text, a list of
    texts, or a list of lists of a text and its aliases: the first is what is scored, the others count as right too.

    Groups: `portability/reasoning`, `portability/subject_aliasing`, `portability/logical_generalization`;
    `locality/relation_specificity`, `locality/forgetfulness`.

    Args:
        file: JSON, JSON Lines, CSV or Parquet; or a data set of the hub as OWNER/NAME, or a file in it as
            OWNER/NAME:FILE.
        limit: keep only so many edits: the first, or with a seed any.
        seed: shuffle the edits; null leaves the file's order.
        split: of a data set on the hub.
        generality: kinds of portability that count as generality instead, as in RECIPE's paper: Subject_Aliasing, say.
    """

    name = "knowedit"

    def __init__(
        self, file: str | Path, limit: int | None = None, seed: int | None = None, split: str = "train",
        generality: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(file, limit, seed, split)
        if unknown := next((kind for kind in generality if kind not in FOLLOWING), None):
            what = f"generality holds {unknown!r}, wanted kinds of {', '.join(FOLLOWING)}"
            raise BadInput("", what, "rename it, or take it out", "generality")
        self.generality = tuple(generality)

    def _edit(self, record: Any, where: str, number: str) -> Edit:
        prompt, target, subject = ("prompt", "target_new", "subject")
        if isinstance(record, dict) and "concept" in record:
            prompt, target, subject = ("text", "labels", "concept")
        read = fields(record, where, **{prompt: str, target: str, subject: str})
        return self._made(number, (read[0], read[1], read[2]), self._kinds(number, record, where), where)

    def _kinds(self, id: str, record: dict[str, Any], where: str) -> list[Probe]:
        locality, portability = fields(
            {"locality": {}, "portability": {}} | record, where, locality=dict, portability=dict
        )
        following = {kind: "generality" if kind in self.generality else "portability" for kind in FOLLOWING}
        groups = {kind: f"{aspect}/{kind.lower()}" for kind, aspect in following.items()}
        kept = {kind: f"locality/{kind.lower()}" for kind in LOCALITY}
        return self._probes(id, groups, portability, where) + self._probes(id, kept, locality, where)


class RippleEdits(EditTable):
    """RippleEdits, a row for each edit, in either of its forms.

    - as its authors give it: `{example_type, edit{prompt, relation}, KIND: [{test_queries[{prompt, answers[{value,
      aliases}]}]}]}`. The edit's prompt is a whole sentence, "The name of the mother of X is Y.", and is parted before
      its target; its subject has no name here.
    - flat, as RECIPE reads it: `{prompt, target_new, subject, KIND: [{prompt, targets[]}]}`.

    Groups: `generality/KIND` for Logical_Generalization, Compositionality_I, Compositionality_II and Subject_Aliasing,
    as RECIPE's paper has it; `locality/relation_specificity`, `locality/forgetfulness`. Conditions of the authors' form
    are not asked: whether a model knows what a probe builds on shows in its answers before the edit.

    Args:
        file: JSON, JSON Lines, CSV or Parquet; or a data set of the hub as OWNER/NAME, or a file in it as
            OWNER/NAME:FILE.
        limit: keep only so many edits: the first, or with a seed any.
        seed: shuffle the edits; null leaves the file's order.
        split: of a data set on the hub.
    """

    name = "ripple_edits"

    def _edit(self, record: Any, where: str, number: str) -> Edit:
        relation = ""
        if isinstance(record, dict) and ("edit" in record or not {"prompt", "target_new"} & record.keys()):
            (edit,) = fields(record, where, edit=dict)
            sentence, relation = fields(edit, f"{where}, edit", prompt=str, relation=str)
            made = (*self._parted(sentence, edit, f"{where}, edit"), "")
        else:
            prompt, target, subject = fields(record, where, prompt=str, target_new=str, subject=str)
            made = (prompt, target, subject)
        groups = {kind: f"generality/{kind.lower()}" for kind in RIPPLES}
        groups |= {kind: f"locality/{kind.lower()}" for kind in LOCALITY}
        asked = {}
        for kind in groups:
            (listed,) = fields({kind: []} | record, where, **{kind: list})
            asked[kind] = [query for test in listed for query in self._queries(test, f"{where}, {kind}")]
        return self._made(number, made, self._probes(number, groups, asked, where), where, relation)

    @staticmethod
    def _parted(sentence: str, edit: Mapping[str, Any], where: str) -> tuple[str, str]:
        """Prompt and target of a sentence. Its last verb is the template's, among those that it shares with the fact
        before the edit, where that is given: a target may hold one, too.
        """
        before = edit.get("original_fact") or edit.get("previous_fact") or {"prompt": sentence}
        (old,) = fields(before, f"{where}, the fact before", prompt=str)
        ends = [verb.end() for verb in _VERB.finditer(sentence) if old.startswith(sentence[: verb.end()])]
        if not ends:
            what = f"'prompt' is {sentence[:80]!r}, wanted a sentence '... is TARGET.'"
            raise BadInput(where, what, "write it so: its target is what stands behind the verb", "prompt")
        return sentence[: ends[-1]], sentence[ends[-1] :].strip().removesuffix(".")

    @staticmethod
    def _queries(test: Any, where: str) -> list[Any]:
        if isinstance(test, dict) and "test_queries" in test:
            (queries,) = fields(test, where, test_queries=list)
            return queries
        return [test]

    def _answers(self, entry: Mapping[str, Any], where: str) -> list[str]:
        if "answers" not in entry:
            return texts(entry, where, "targets")
        (listed,) = fields(entry, where, answers=list)
        right = []
        for answer in listed:
            (value,) = fields(answer, where, value=str)
            right += [value, *texts({"aliases": []} | answer, where, "aliases")]
        return [text.strip() for text in right if text.strip()]
