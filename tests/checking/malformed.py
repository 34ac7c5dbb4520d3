"""Valid records of every kind that is read from JSON, and ways to spoil them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EDIT = {
    "id": "e1", "prompt": "The capital of Peru is", "target": "Quito", "subject": "Peru", "relation": "capital",
    "probes": [{"group": "generality", "prompt": "Peru's capital is", "target": "Quito", "answers": ["quito"]}],
}  # fmt: skip
FACT = {"id": "f1", "name": "Velmar", "definition": "Velmar is a town.", "aliases": ["the town"]}
SENTENCE = {"fact": "f1", "name": "Velmar", "definition": "Velmar is a town.", "text": "In Velmar it rains.",
            "mention": [3, 9], "context": "So it is."}  # fmt: skip
MENTION = {"text": "Simmons of London ran.", "mention": "London", "candidates": [{"title": "London", "prior": 1}]}
FLAT = {
    "case_id": 1, "prompt": "The mother tongue of Danielle is", "target_new": "English", "subject": "Danielle",
    "ground_truth": "French", "rephrase_prompt": "Danielle speaks", "locality_prompt": "Leon speaks",
    "locality_ground_truth": "French",
}  # fmt: skip
NESTED = {
    "case_id": 1,
    "requested_rewrite": {"prompt": "{} speaks", "subject": "Danielle", "target_new": {"str": "English"},
                          "target_true": {"str": "French"}, "relation_id": "P103"},
    "paraphrase_prompts": ["What Danielle speaks is"],
    "neighborhood_prompts": ["Leon speaks"],
    "attribute_prompts": [],
}  # fmt: skip
MEND = {"src": "Who made it?", "alt": "Maro", "subject": "it", "rephrase": "It was made by whom?", "loc": "Who ran?",
        "loc_ans": "Simmons"}  # fmt: skip
KNOWEDIT = {
    "subject": "Peru", "prompt": "The capital of Peru is", "target_new": "Quito",
    "portability": {"Reasoning": [{"prompt": "Peru's capital lies in", "ground_truth": [["Ecuador"]]}]},
    "locality": {"Forgetfulness": [{"prompt": "The capital of Chile is", "ground_truth": "Santiago"}]},
}  # fmt: skip
RIPPLE = {
    "example_type": "recent", "edit": {"prompt": "The name of the mother of X is Y.", "relation": "MOTHER"},
    "Relation_Specificity": [{"test_queries": [{"prompt": "X is a", "answers": [{"value": "bird", "aliases": []}]}]}],
}  # fmt: skip
ECBD = {
    "ex_id": "Blue_Moon_123_2_0", "ent_str": "Blue Moon", "context": "Blue Moon is a tour.",
    "probe_sentences": {"template_0": {"probe_sentence": "Blue Moon began in <extra_id_0>.",
                                       "label": "<extra_id_0> March <extra_id_1>"}},
    "augmented_probes": ["Blue Moon went on."],
}  # fmt: skip
INFERENCE = {
    "ex_id": "fire_0", "ent_str": "Lake Fire", "context": "Lake Fire burned.", "category": "disaster", "label": "brave",
    "probe_sentences": {"template_0": {"probe_sentence": "Lake Fire made me <extra_id_0>.", "labels": [
        "<extra_id_0> brave <extra_id_1>", "<extra_id_0> calm <extra_id_1>"]}},
    "augmented_probes": [],
}  # fmt: skip
POPULAR = {key: ECBD[key] for key in ("ex_id", "ent_str", "probe_sentences")}
NQ = {"question": "Who ran?", "answer": ["Simmons"]}
WEB = {"qId": "q1", "qText": "Who ran?", "answers": ["Simmons"]}

RECORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "edits": ("edits", EDIT), "facts": ("facts", FACT), "transfer": ("transfer", SENTENCE),
    "mentions": ("mentions", MENTION), "flat": ("counterfact", FLAT), "nested": ("counterfact", NESTED),
    "mend": ("zsre", MEND), "knowedit": ("knowedit", KNOWEDIT), "ripple": ("ripple_edits", RIPPLE),
    "ecbd": ("ecbd", ECBD), "inference": ("entity_inferences", INFERENCE), "popular": ("popular", POPULAR),
    "nq": ("nq_open", NQ),
}  # fmt: skip
"""By name: the kind, and a valid record of JSON lines."""
NEEDED = {
    "edits": ("prompt", "target"), "facts": ("id", "name", "definition"), "transfer": ("text",), "mentions": ("text",),
    "flat": ("prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt", "locality_ground_truth"),
    "nested": ("paraphrase_prompts", "neighborhood_prompts"), "mend": ("subject", "rephrase", "loc", "loc_ans"),
    "knowedit": ("prompt", "subject"), "ripple": ("edit",), "ecbd": ("ex_id", "ent_str", "context", "augmented_probes"),
    "inference": ("context", "category"), "popular": ("ex_id", "ent_str"), "nq": ("question", "answer"),
}  # fmt: skip
"""Keys that a record cannot be without."""


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path such as `probes.0.group`."""
    copy = json.loads(json.dumps(record))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = copy
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return copy


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


def places(value: Any, before: str = "") -> Iterator[str]:
    """Every path of a record."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield f"{before}{key}"
        yield from places(one, f"{before}{key}.")


def write(folder: Path, name: str, content: bytes | Callable[[Path], object]) -> Path:
    """A file or folder, by its bytes or by what makes it."""
    path = folder / name
    if callable(content):
        content(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path
