"""Files of facts: entities with their definitions. Knows no model and no method."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedit.editing import records
from kedit.editing.probes import Fact, check_facts
from kedit.editing.problems import BadInput, each, refuse_empty

KEYS = ("id", "name", "aliases", "definition")


def read_facts(path: str | Path) -> list[Fact]:
    """Facts from JSON lines {id, name, definition, aliases (may be left out)}; other keys are not read.

    Raises:
        DataError: with file and line: a key is missing or misspelt or holds another type, a name or a definition is
            empty, two facts share an id or a name; or the file holds none.
    """
    if not (path := Path(path)).is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise BadInput("", f"no file {path}: it {what}", "wanted facts as JSON lines with id, name and definition")
    facts = list(each(records.read_json_lines(path), _read_fact))
    if not facts:
        remedy = "wanted JSON lines with id, name and definition"
        refuse_empty(BadInput("", f"{path} holds no facts", remedy))
    check_facts(facts)
    return facts


def _read_fact(line: Any, where: str) -> Fact:
    id, name, definition = records.fields(line, where, id=str, name=str, definition=str)
    check_spelling(line, KEYS, where)
    if not id.strip():
        raise BadInput(where, f"the id of {name[:60]!r} is empty", "give it one of its own", "id")
    return Fact(id, name, definition, read_aliases(line, where), where)


def read_aliases(line: dict[str, Any], where: str) -> tuple[str, ...]:
    """A record's aliases, none where it gives none.

    Raises:
        DataError: they are no list of texts, or one is empty.
    """
    given = line.get("aliases")
    if given is None:
        return ()
    (aliases,) = records.fields(line, where, aliases=list)
    if not all(alias.strip() for alias in records.strings(aliases, where, "aliases")):
        raise BadInput(where, "an alias is empty", "take it out", "aliases")
    return tuple(aliases)


def check_spelling(line: dict[str, Any], keys: Sequence[str], where: str) -> None:
    """Refuse a key that is much like one of these which is not there.

    Raises:
        DataError: there is one.
    """
    for key in line.keys() - set(keys):
        missing = [name for name in keys if name not in line]
        if near := difflib.get_close_matches(key, missing, 1, 0.8):
            raise BadInput(where, f"unknown key {key[:60]!r}", f"did you mean {near[0]!r}?", key[:60])
