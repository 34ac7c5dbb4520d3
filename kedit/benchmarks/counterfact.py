"""CounterFact: facts told to be otherwise. Knows the files, flat and nested, and not how an edit is made."""

from typing import Any

from kedit.benchmarks.edit_tables import EditTable
from kedit.editing.edits import Edit, probe
from kedit.editing.problems import BadInput
from kedit.editing.records import fields, strings


class CounterFact(EditTable):
    """CounterFact, a row for each edit, in either of its forms.

    - flat (RECIPE, EasyEdit): `{case_id, prompt, target_new, subject, ground_truth, rephrase_prompt, locality_prompt,
      locality_ground_truth}`, one probe of generality and one of locality.
    - nested (ROME, MEMIT): `{case_id, requested_rewrite{prompt with {}, subject, target_new{str}, target_true{str},
      relation_id}, paraphrase_prompts[], neighborhood_prompts[], attribute_prompts[]}`; `generation_prompts` are not
      asked.

    Groups: `generality/rephrase`; `locality/neighbourhood`, other subjects of which the old target is true;
    `locality/attribute`, other subjects of which the new one is true. Rephrasings are as they come: many have an
    unrelated sentence before them, and line ends inside. RECIPE's counterfact-edit.json gives 62 prompts several
    targets, and 214 of its locality prompts are edited elsewhere: see `editing.edits.check_edits`.

    Args:
        file: JSON, JSON Lines, CSV or Parquet; or a data set of the hub as OWNER/NAME, or a file in it as
            OWNER/NAME:FILE.
        limit: keep only so many edits: the first, or with a seed any.
        seed: shuffle the edits; null leaves the file's order.
        split: of a data set on the hub.
    """

    name = "counterfact"

    def _edit(self, record: Any, where: str, number: str) -> Edit:
        if isinstance(record, dict) and "requested_rewrite" in record:
            return self._nested(record, where, number)
        prompt, target, subject, rephrased, near, right = fields(
            record, where, prompt=str, target_new=str, subject=str, rephrase_prompt=str, locality_prompt=str,
            locality_ground_truth=str,
        )  # fmt: skip
        id = str(record.get("case_id", number))
        probes = [
            probe(id, "generality/rephrase", rephrased, target, where=where),
            probe(id, "locality/neighbourhood", near, right, where=where),
        ]
        return self._made(id, (prompt, target, subject), probes, where)

    def _nested(self, record: dict[str, Any], where: str, number: str) -> Edit:
        rewrite, paraphrases, neighbours = fields(
            record, where, requested_rewrite=dict, paraphrase_prompts=list, neighborhood_prompts=list
        )
        (attributes,) = fields({"attribute_prompts": []} | record, where, attribute_prompts=list)
        place = f"{where}, requested_rewrite"
        template, subject, new, true = fields(
            rewrite, place, prompt=str, subject=str, target_new=dict, target_true=dict
        )
        (target,), (old,) = fields(new, f"{place}.target_new", str=str), fields(true, f"{place}.target_true", str=str)
        if template.count("{}") != 1:
            what = f"'prompt' is {template[:80]!r}, wanted one {{}} in it"
            raise BadInput(place, what, "put {} where the subject stands, once", "prompt")
        id = str(record.get("case_id", number))
        asked = (
            ("generality/rephrase", "paraphrase_prompts", paraphrases, target),
            ("locality/neighbourhood", "neighborhood_prompts", neighbours, old),
            ("locality/attribute", "attribute_prompts", attributes, target),
        )
        probes = [
            probe(id, group, prompt, right, order, where=where)
            for group, key, prompts, right in asked
            for order, prompt in enumerate(strings(prompts, where, key))
        ]
        relation = str(rewrite.get("relation_id", ""))
        return self._made(id, (template.replace("{}", subject), target, subject), probes, where, relation)
