"""Configurations: whether the parser of the command that reads them takes them, and whether the files they name are
there.

The parser stops at the first mistake. So what it complains of is taken out, and the rest is parsed again, until nothing
is left to complain of.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from kedit.checking.parsing import ABSENT, complaint, parser_for
from kedit.editing.problems import BadInput, Problem, refuse
from kedit.running.complaints import is_quoted, key_named, keys_meant
from kedit.running.nodes import composed, dotted, pairs, repeated, take_out
from kedit.running.places import is_address

ROUNDS = 20
"""Mistakes that are looked for in one configuration; each takes a parse."""
FILES = {"facts", "transfer", "predict", "corpus", "folder", "path", "names", "specificity", "dump", "descriptions",
         "definitions", "file"}  # fmt: skip
"""Keys under which files or folders are named that must be there."""
INNER_FILES = {("judging", "perplexity"), ("settings", "text")}
"""Such keys that mean something else elsewhere, with the key around them."""
FOLDER = ("backbone", "name")
"""A model, which is a folder where it is written as one, and of the hub otherwise."""
SHAPED_AS_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[^:]+)?")


def check_configuration(path: Path) -> tuple[int, list[Problem]]:
    """Parse a configuration, and look for the files that it names; returns how many values it has, and notes.

    An overlay, whose model or data has no class_path, is checked but for these.

    Raises:
        DataError: it is no YAML, or a key or value is refused; the line is named.
    """
    root = composed(path)
    keys = {key.value for key, _ in root.value}
    for name, key in list(repeated(root)):
        what = f"{name} stands twice in one mapping, of which the last would be taken"
        refuse(BadInput(f"{path}:{key.start_mark.line + 1}", what, "keep one", name))
        take_out(root, key)
    for error in _missing(root, path):
        refuse(error)
    count = sum(1 for _ in pairs(root))
    parse, command = parser_for(keys)
    notes = list(_without_class(root, path)) if command == "fit" else []
    taken_out = False
    before = ""
    for _ in range(ROUNDS):
        message = complaint(parse, root)
        if not message or message == before or ABSENT in message:
            break
        before = message
        error, node = _located(message, path, root, command)
        about_absence = message.startswith("missing:") or re.search(r"needs \w+", message) is not None
        overlay = about_absence and command == "fit" and not {"model", "data"} <= keys
        if (about_absence and (overlay or notes)) or (taken_out and (about_absence or node is None)):
            break  # what is wanting was taken out here, or stands in the configuration below
        refuse(error)
        if node is None or not take_out(root, node):
            break
        taken_out = True
    return count, notes


def _without_class(root: yaml.MappingNode, path: Path) -> Iterator[Problem]:
    """Take out a model or data of no class: of which one its values are, the configuration below says."""
    for key, value in list(root.value):
        if key.value in ("model", "data") and isinstance(value, yaml.MappingNode):
            names = {name.value for name, _ in value.value}
            if names == {"init_args"}:
                root.value.remove((key, value))
                what = f"{key.value} has no class_path: its values were not checked"
                remedy = "that is right in an overlay; else add it"
                yield Problem(f"{path}:{key.start_mark.line + 1}", what, remedy, key.value)


def _missing(root: yaml.Node, path: Path) -> Iterator[BadInput]:
    """Files that are named and are not there; they are looked for from here, as the commands do."""
    for names, key, value in dotted(root):
        is_folder = names[-2:] == FOLDER
        is_file = key.value in FILES or names[-2:] in INNER_FILES
        named = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for one in named if is_file or is_folder else []:
            text = one.value if isinstance(one, yaml.ScalarNode) and one.tag.endswith(":str") else ""
            is_pattern = any(sign in text for sign in "{}\n")
            from_hub = key.value == "file" and SHAPED_AS_HUB.fullmatch(text) and not Path(text).suffix
            from_hub = from_hub or (is_folder and not text.startswith(("./", "../", "/", "~")))
            if text and not is_pattern and not from_hub and not is_address(text) and not _exists(text):
                where = f"{path}:{one.start_mark.line + 1}"
                what = f"{key.value} names what is not there: {text[:200]}"
                one.value = f"{ABSENT}{Path(text).suffix}"
                yield BadInput(where, what, "correct it, or make it first; it is looked for from here", key.value)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _located(message: str, path: Path, root: yaml.Node, command: str) -> tuple[BadInput, yaml.Node | None]:
    """A complaint in its parts with its line, and the key to take out so that the rest can be looked at."""
    message = re.sub(r" ?\(FILE:[^)]*\)", "", message)
    head, *hints = [line.strip() for line in message.splitlines()]
    found = re.match(r"unknown key ([\w.+-]+)|([\w.+-]+): |([\w.]+) is\b", head)
    field = next(filter(None, found.groups()), "") if found else ""
    parts = tuple(part for part in field.split(".") if part != "init_args")
    best: tuple[tuple[str, ...], yaml.Node | None] = ((), None)
    meant = keys_meant(head, root)
    if meant:
        best, field = meant[-1][:2], field or ".".join(meant[-1][0])
    given = re.search(r"got '([^']*)'", head)
    named = key_named(".".join(parts), root, given[1] if given else None) if parts and not meant else None
    if named and {*parts} <= {*named[0]}:
        best = named[:2]
    if best[1] is None:  # constructors do not say whose field it is
        for names, key, value in dotted(root):
            is_named = len(names[-1:]) == 1 and re.search(rf"\b{re.escape(names[-1])}\b", head) is not None
            is_value = isinstance(value, yaml.ScalarNode) and len(value.value) > 3 and value.value in head
            if (is_named and not parts) or is_value:
                best = names, key
    node = stands = best[1]
    for key, value in pairs(meant[-1][2]) if meant else []:
        if isinstance(value, yaml.ScalarNode) and key.value != "class_path" and is_quoted(value.value, head):
            stands = key
    classed = re.search(r"unknown class (\S+)|(\S+) is not allowed in", head)
    for _, key, value in dotted(root):
        if classed and isinstance(value, yaml.ScalarNode) and value.value in classed.groups():
            stands = key
            node = node or key
    where = str(path) if stands is None else f"{path}:{stands.start_mark.line + 1}"
    what, _, rest = head.partition(": give ") if head.startswith(("missing", "no ", "data ")) else (head, "", "")
    remedy = "; ".join(hints) or (f"give {rest}" if rest else _remedy(head, command))
    return BadInput(where, what, remedy, field), node


def _remedy(head: str, command: str) -> str:
    if head.startswith("unknown key"):
        return f"take it out; `python -m kedit {command} --help` lists the keys"
    if head.startswith("missing"):
        return "add it"
    if "wanted" in head:
        return "give it such a value"
    return "correct it, or take it out"
