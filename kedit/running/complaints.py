"""What a constructor complains of when a configuration is made into objects: its own words, and where the value stands.

Knows YAML and no key's meaning.
"""

import re
from collections.abc import Iterator, Sequence

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kedit.editing.sources import DataError
from kedit.running.errors import told
from kedit.running.nodes import MOST, dotted, repeated, size

FOLLOWS = re.compile(r":| (?:is|are|names|must)\b| ['\"(]")
"""What stands behind a key's name at the beginning of a message that is about it."""
CHECK = re.compile(r"check '(\w+)'")
"""What is said of a file that is not there."""
UNION = re.compile(r"^\s+- (?!Expected )(.+)", re.M)
"""What each of several types said; that the value is none of the type is not worth telling."""
Named = tuple[tuple[str, ...], yaml.Node, yaml.Node]
"""A key with those around it, its node and its value's."""


def complaint_of(error: BaseException) -> str:
    """What a constructor said, in one to three lines, without what jsonargparse puts around it."""
    while not isinstance(error, DataError):
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, ValueError | TypeError | MisconfigurationException):
            break
        error = cause
    if message := told(error):
        return message
    text = next(iter(UNION.findall(str(error))), str(error).partition("\n")[0])
    return text if text and isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"


def keys_meant(message: str, root: yaml.Node) -> list[Named]:
    """Keys that a message begins with, by their full names or by the ends of these, or that it says to check; of
    several with one name those whose value it quotes, else all.
    """
    found: list[Named] = []
    longest = 0
    for names, key, value in dotted(root):
        suffixes = (".".join(names[start:]) for start in range(len(names)))
        length = next((len(one) for one in suffixes if message.startswith(one) and FOLLOWS.match(message, len(one))), 0)
        if length and length >= longest:
            found = [*(found if length == longest else []), (names, key, value)]
            longest = length
    if not found and (checked := CHECK.search(message)):
        found = [one for one in dotted(root) if one[0][-1] == checked[1]]
    quoted = [
        one for one in found if isinstance(one[2], yaml.ScalarNode) and is_quoted(one[2].value, message[longest:])
    ]
    return quoted or found


def key_named(key: str, root: yaml.Node, value: str | None = None) -> Named | None:
    """The key of that last name; of several that which has the value, or most of the words around it."""
    words = key.split(".")
    named = [one for one in dotted(root) if one[0][-1] == words[-1]]
    return max(named, key=lambda one: (one[2].value == value, len({*words} & {*one[0]})), default=None)


def is_quoted(value: str, message: str) -> bool:
    """Whether a value stands in a message as a word; YAML's .nan is nan there."""
    word = re.escape(value.lower().lstrip("."))
    return re.search(rf"(?<![\w.]){word}(?![\w])", message.lower()) is not None


def with_place(message: str, files: Sequence[str], given: Sequence[str] = ()) -> str:
    """A message with file and line of the key that it begins with, as ` (file:line)` behind its first line.

    Args:
        message: of a constructor.
        files: configurations, of which the last counts most.
        given: words of the command line; what stands there stands in no file.
    """
    first, *more = message.split("\n")
    words = [word.lstrip("-").split("=")[0] for word in given if word.startswith("--")]
    for file, root in reversed([*trees(files)]):
        meant = keys_meant(message, root)
        if meant and any(".".join(names) in words for names, _, _ in meant):
            return message
        if lines := sorted({key.start_mark.line + 1 for _, key, _ in meant}):
            several = ", ".join(map(str, lines[1:4]))
            first += f" ({file}:{lines[0]}{f' or {several}' if several else ''})"
            break
    return "\n".join([first, *more])


def refuse_repeated(files: Sequence[str]) -> None:
    """Refuse a key that stands twice in one mapping of a configuration.

    Raises:
        DataError: one does.
    """
    for file, root in trees(files):
        for name, key in repeated(root):
            line = key.start_mark.line + 1
            raise DataError(
                f"{file}:{line}: {name} stands twice in one mapping, of which the last would be taken: keep one"
            )


def trees(files: Sequence[str]) -> Iterator[tuple[str, yaml.Node]]:
    """The nodes of configurations, with their files; one that cannot be read is told of by who parses it."""
    for file in files:
        try:
            with open(file, encoding="utf-8-sig") as text:
                root = yaml.compose(text, Loader=yaml.SafeLoader)
            is_tree = root is None or size(root, {}) <= MOST  # a value may stand in itself
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue
        if root is not None and is_tree:
            yield file, root
