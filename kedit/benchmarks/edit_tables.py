"""What benchmarks of editing share: a table of rows that become edits, each row by its own schema."""

import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedit.benchmarks.tables import find_table, read_table
from kedit.editing.edits import Edit, EditSource, check_edit, check_limit, drawn, probe
from kedit.editing.probes import Probe
from kedit.editing.problems import BadInput, refuse, refuse_empty
from kedit.editing.records import fields, strings
from kedit.editing.sources import DataError


class EditTable(EditSource):
    """A table of edits.

    Attributes:
        skipped: what the last reading left out, by reason.
    """

    def __init__(
        self, file: str | Path, limit: int | None = None, seed: int | None = None, split: str = "train"
    ) -> None:
        check_limit(limit)
        self.table = find_table(file)
        self.limit, self.seed, self.split = limit, seed, split
        self.skipped: Counter[str] = Counter()

    def load(self) -> list[Edit]:
        self.skipped.clear()
        edits: list[Edit] = []
        first: dict[str, str] = {}
        for number, (where, record) in enumerate(read_table(self.table, self.split), start=1):
            try:
                edit = self._edit(record, where, str(number))
                if edit.prompt and edit.target:
                    check_edit(edit, first)
            except DataError as error:
                refuse(error)
                continue
            if edit.prompt and edit.target:
                edits.append(edit)
            else:
                self.skipped[f"rows whose {'target' if edit.prompt else 'prompt'} is empty"] += 1
            if self.seed is None and len(edits) == self.limit:
                break
        for reason, count in self.skipped.items():
            print(f"{self.table}: left out {count:,} {reason}", file=sys.stderr, flush=True)
        if not edits:
            refuse_empty(BadInput(str(self.table), "0 edits in this table", "check 'file'"))
        return drawn(edits, self.limit, self.seed)

    @abstractmethod
    def _edit(self, record: Any, where: str, number: str) -> Edit:
        """The edit of a record; `number` counts records from 1."""

    def _made(self, id: str, record: tuple[str, str, str], probes: list[Probe], where: str, relation: str = "") -> Edit:
        """An edit from (prompt, target, subject) without the probes that ask nothing or have no answer."""
        prompt, target, subject = (text.strip() for text in record)
        kept = [one for one in probes if one.prompt and one.span]
        if len(kept) < len(probes):
            self.skipped["probes without a prompt or an answer"] += len(probes) - len(kept)
        return Edit(id, prompt, target, subject, relation, tuple(kept), where)

    def _probes(self, edit: str, groups: Mapping[str, str], record: Mapping[str, Any], where: str) -> list[Probe]:
        """Probes of `{KIND: [{"prompt", ...}]}`, each kind under the group that it has in `groups`."""
        if unknown := next((kind for kind in record if kind not in groups), None):
            what = f"there is no kind of probe {unknown[:60]!r}, wanted one of {', '.join(groups)}"
            raise BadInput(where, what, "rename it, or take it out", unknown[:60])
        probes = []
        for kind, group in groups.items():
            (listed,) = fields({kind: []} | dict(record), where, **{kind: list})
            for number, entry in enumerate(listed):
                place = f"{where}, {kind} {number + 1}"
                (prompt,) = fields(entry, place, prompt=str)
                right = self._answers(entry, place)
                first = right[0] if right else ""
                probes.append(probe(edit, group, prompt, first, number, right[1:], place))
        return probes

    def _answers(self, entry: Mapping[str, Any], where: str) -> list[str]:
        """All right answers of a probe, the one to be scored first."""
        return texts(entry, where, "ground_truth")


def texts(record: Mapping[str, Any], where: str, key: str) -> list[str]:
    """What stands under a key: a text, a list of texts, or a list of lists of a text and its aliases; without empties.

    Raises:
        DataError: something else does, or nothing.
    """
    (value,) = fields(record, where, **{key: object})
    listed = value if isinstance(value, list) else [value]
    flat = [text for part in listed for text in (part if isinstance(part, list) else [part])]
    return [text.strip() for text in strings(flat, where, key) if text.strip()]
