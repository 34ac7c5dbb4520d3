"""The nodes of a YAML file, which know their lines. Knows no key's meaning."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from kedit.editing.problems import BadInput
from kedit.editing.records import not_utf8

MOST = 100_000
"""Values of a file, those that stand for others by an alias counted."""


def composed(path: Path) -> yaml.MappingNode:
    """The nodes of a file.

    Raises:
        DataError: it is no YAML, no mapping, or stands for too much; the line is named.
    """
    raw = path.read_bytes()
    remedy = "mend this line, or the one before it"
    try:
        root = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        count = 0 if root is None else size(root, {})
    except UnicodeDecodeError as error:
        raise not_utf8(path, raw, 1, error) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).partition("\n")[0]
        at = getattr(error, "position", None)
        line = mark.line + 1 if mark else raw[: at if isinstance(at, int) else 0].count(b"\n") + 1
        raise BadInput(f"{path}:{line}", f"is not YAML: {what}", remedy) from error
    except RecursionError as error:
        remedy = "a configuration has some ten levels: check what wrote it"
        raise BadInput(str(path), "values stand in one another too deep to be read", remedy) from error
    if not isinstance(root, yaml.MappingNode):
        came = "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else repr(root.value[:60])
        what = f"wanted keys with values, got {came}"
        raise BadInput(f"{path}:1", what, "write `model: ...` and so on, as in configs/")
    if count > MOST:
        what = f"its aliases (*name) stand for more than {MOST:,} values"
        raise BadInput(f"{path}:1", what, "write out what is meant")
    for key, _ in pairs(root):
        if not isinstance(key, yaml.ScalarNode):
            what = "a key that is itself a list or a mapping"
            raise BadInput(f"{path}:{key.start_mark.line + 1}", what, "write a word before the colon")
    return root


def size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for; one that stands in itself, for too many."""
    if id(node) not in known:
        known[id(node)] = MOST + 1
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        nodes = [one for part in inner for one in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(size(one, known) for one in nodes)
    return known[id(node)]


def pairs(node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Every key of a configuration with its value."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key, value
            yield from pairs(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from pairs(value)


def dotted(node: yaml.Node, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], yaml.Node, yaml.Node]]:
    """Every key with those around it, but for `init_args`, which complaints leave out in places."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = before if key.value == "init_args" else (*before, *key.value.split("."))
            if path != before:
                yield path, key, value
            yield from dotted(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from dotted(value, before)


def repeated(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """Keys that came before in their mapping, with their nodes; YAML lets the last one win."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                yield key.value, key
    inner = [] if isinstance(node, yaml.ScalarNode) else node.value
    for part in inner:
        yield from repeated(part[1] if isinstance(part, tuple) else part)


def take_out(node: yaml.Node, key: yaml.Node) -> bool:
    """Remove a key with its value; whether it was there."""
    if isinstance(node, yaml.MappingNode):
        kept = [(name, value) for name, value in node.value if name is not key]
        if len(kept) < len(node.value):
            node.value = kept
            return True
        return any(take_out(value, key) for _, value in node.value)
    return isinstance(node, yaml.SequenceNode) and any(take_out(value, key) for value in node.value)
