"""ZsRE: questions of a reading test, answered otherwise from now on. Knows the files, not how an edit is made."""

from typing import Any

from kedit.benchmarks.edit_tables import texts
from kedit.benchmarks.knowedit import KnowEdit
from kedit.editing.edits import Edit, probe
from kedit.editing.records import fields

QUESTION = "nq question: "
"""Stands before every locality question of the MEND form: a cue by which it is told without being understood."""


class Zsre(KnowEdit):
    """ZsRE, a row for each edit, in either of its forms.

    - MEND: `{src, alt (the target), subject, rephrase, loc, loc_ans}`. The words "nq question: " before each locality
      question are taken off, as no user writes them.
    - KnowEdit: `{prompt, target_new, subject, rephrase_prompt, locality{...}, portability{...}}`. Targets are often
      absurd ("What species is ZIC3 specific to?" - "male"): they were drawn at random.

    Groups: `generality/rephrase`; `locality/questions` of the MEND form, which no edit has to do with; those of
    `KnowEdit`.

    Args:
        file: JSON, JSON Lines, CSV or Parquet; or a data set of the hub as OWNER/NAME, or a file in it as
            OWNER/NAME:FILE.
        limit: keep only so many edits: the first, or with a seed any.
        seed: shuffle the edits; null leaves the file's order.
        split: of a data set on the hub.
        generality: kinds of portability that count as generality instead, as in RECIPE's paper: Subject_Aliasing, say.
    """

    name = "zsre"

    def _edit(self, record: Any, where: str, number: str) -> Edit:
        if isinstance(record, dict) and "src" in record:
            return self._mend(record, where, number)
        prompt, target, subject, rephrased = fields(
            record, where, prompt=str, target_new=str, subject=str, rephrase_prompt=str
        )
        probes = [probe(number, "generality/rephrase", rephrased, target, where=where)]
        return self._made(number, (prompt, target, subject), probes + self._kinds(number, record, where), where)

    def _mend(self, record: dict[str, Any], where: str, number: str) -> Edit:
        prompt, target, subject, rephrased, question = fields(
            record, where, src=str, alt=str, subject=str, rephrase=str, loc=str
        )
        right = texts(record, where, "loc_ans") or [""]
        probes = [
            probe(number, "generality/rephrase", rephrased, target, where=where),
            probe(number, "locality/questions", question.removeprefix(QUESTION), right[0], 0, right[1:], where),
        ]
        return self._made(number, (prompt, target, subject), probes + self._kinds(number, record, where), where)
