"""What can be read and stored, and is still worth a look: edits that contradict or repeat others or teach nothing, and
texts with what nobody sees.
"""

import re
from collections.abc import Iterator, Sequence

from kedit.editing.conflicts import find_conflicts, normal
from kedit.editing.edits import Edit
from kedit.editing.plain_text import HIDDEN
from kedit.editing.problems import Problem

_UNSEEN = re.compile("[\u200b\u2060\ufeff\ufffd]")
"""Widths of nothing, and the mark of a character that was lost; joiners are not among them: scripts need these."""


def suspicions(edits: Sequence[Edit]) -> list[Problem]:
    """Notes on edits, in their order; those on probes come last."""
    return [*(note for edit in edits for note in _alone(edit)), *_together(edits)]


def unseen(where: str, **texts: str) -> Iterator[Problem]:
    """Notes on characters that nobody sees and a model reads, by the names of the texts' fields."""
    for field, text in texts.items():
        if found := _UNSEEN.search(text) or HIDDEN.search(text):
            what = f"{field!r} holds U+{ord(found[0]):04X}, which nobody sees or which stands for a lost character"
            yield Problem(where, what, "take it out, or write what was meant", field)


def _alone(edit: Edit) -> Iterator[Problem]:
    if normal(edit.target) == normal(edit.prompt):
        yield Problem(edit.where, "target is the prompt again", "write what is to be answered", "target")
    if edit.subject and normal(edit.subject) not in normal(edit.prompt):
        what = f"prompt does not name its subject {edit.subject[:60]!r}"
        yield Problem(edit.where, what, "name it in the prompt, or leave the subject out", "subject")
    yield from unseen(edit.where, prompt=edit.prompt, target=edit.target, subject=edit.subject)


def _together(edits: Sequence[Edit]) -> Iterator[Problem]:
    found = find_conflicts(edits)
    by_id = {edit.id: edit for edit in edits}
    repeated = set(found.duplicates)
    first: dict[str, Edit] = {}
    for edit in edits:
        before = first.setdefault(normal(edit.prompt), edit)
        if edit.id in repeated:
            what = f"says again what is said at {before.where or before.id}"
            yield Problem(edit.where, what, "leave one of them out: nothing is written for it")
    for same in found.conflicts:
        one, *others = (by_id[name] for name in same)
        for other in others:
            if normal(other.target) != normal(one.target):
                what = f"the prompt {other.prompt[:60]!r} has the target {other.target[:60]!r} here and"
                what += f" {one.target[:60]!r} at {one.where or one.id}"
                yield Problem(other.where, what, "keep one: the later one stands", "target")
    if found.overlapping:
        what = f"{len(found.overlapping):,} locality probes ask a prompt that is edited"
        yield Problem("", what, "take them out, or expect no full locality")
