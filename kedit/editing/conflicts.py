"""What edits contradict one another in, and the best score that this leaves to any editor. Knows no model."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedit.editing.edits import Edit


def normal(text: str) -> str:
    """The text by which prompts and targets count as the same: NFC, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


@dataclass(frozen=True)
class EditConflicts:
    """Edits of a stream that cannot all hold.

    Args:
        edits: how many there are.
        duplicates: ids of edits that say again what an earlier one says.
        conflicts: for each prompt that is given several targets the ids of its edits.
        reliability_ceiling: the share of edits that one answer a prompt can satisfy after all of them.
        overlapping: ids of locality probes whose very prompt is edited somewhere in the stream.
        locality_ceiling: the share of locality probes of which that is not so; 1 where there are none.
    """

    edits: int
    duplicates: tuple[str, ...]
    conflicts: tuple[tuple[str, ...], ...]
    reliability_ceiling: float
    overlapping: tuple[str, ...]
    locality_ceiling: float

    def __str__(self) -> str:
        lines = []
        if self.duplicates:
            lines.append(f"{len(self.duplicates):,} of {self.edits:,} edits say again what an earlier one says")
        if self.conflicts:
            lines.append(
                f"{len(self.conflicts):,} prompts have several targets ({sum(map(len, self.conflicts)):,} edits):"
                f" reliability cannot exceed {self.reliability_ceiling:.4f}"
            )
        if self.overlapping:
            lines.append(
                f"{len(self.overlapping):,} locality probes ask a prompt that is edited: locality of an editor that"
                f" makes all edits is about {self.locality_ceiling:.4f} at best"
            )
        return "\n".join(lines) or f"{self.edits:,} edits, none of which contradicts another"


def find_conflicts(edits: Sequence["Edit"]) -> EditConflicts:
    """Find edits that repeat or contradict others, and locality probes of what is edited."""
    by_prompt: dict[str, list[Edit]] = {}
    for edit in edits:
        by_prompt.setdefault(normal(edit.prompt), []).append(edit)
    duplicates: list[str] = []
    conflicts: list[tuple[str, ...]] = []
    lost = 0
    for same in by_prompt.values():
        if len(same) == 1:
            continue
        targets: Counter[str] = Counter()
        for edit in same:
            target = normal(edit.target)
            if targets[target]:
                duplicates.append(edit.id)
            targets[target] += 1
        if len(targets) > 1:
            conflicts.append(tuple(edit.id for edit in same))
            lost += len(same) - max(targets.values())
    local = [probe for edit in edits for probe in edit.asked("locality")]
    overlapping = tuple(probe.id for probe in local if normal(probe.prompt) in by_prompt)
    return EditConflicts(
        len(edits), tuple(duplicates), tuple(conflicts), 1 - lost / max(1, len(edits)),
        overlapping, 1 - len(overlapping) / max(1, len(local)),
    )  # fmt: skip
