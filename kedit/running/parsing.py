"""Command line and configuration errors in one to three lines, with the file and line and the nearest right spelling;
and which classes a configuration may name. Knows jsonargparse and its messages; knows no method.
"""

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from kedit.editing.sources import DataError
from kedit.running.complaints import complaint_of, key_named, refuse_repeated, trees, with_place
from kedit.running.nodes import dotted

PROGRAM = "python -m kedit"
ALLOWED = [
    "kedit",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.profilers",
    "lightning.pytorch.plugins",
    "torch.optim",
    "deepspeed.ops.adam",
]


def restrict_imports() -> None:
    """Let a configuration name classes of kedit, of Lightning's plug-in packages and of torch.optim only.

    More prefixes are allowed by whoever starts the command (`--allow my_package`, or KEDIT_ALLOW=my_package,another in
    the environment), never by the configuration itself: naming a class runs its module. Configurations are read from
    local files only.

    Raises:
        DataError: what is to be allowed is no package.
    """
    own = _allowed_besides()
    for prefix in own:
        if not all(part.isidentifier() for part in prefix.split(".")) or prefix.split(".")[0] == "jsonargparse":
            raise DataError(f"--allow {prefix}: wanted the name of a package of your own, as in --allow my_package")
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*ALLOWED, *own], config_read_mode_fsspec_enabled=False
    )


def _allowed_besides() -> list[str]:
    return [prefix.strip().rstrip(".") for prefix in os.environ.get("KEDIT_ALLOW", "").split(",") if prefix.strip()]


def _module(name: str) -> ModuleType:
    """A module that a configuration may name: a message quotes values, and these may be made to look like messages.

    Raises:
        ImportError: it may not, or there is none.
    """
    if not any(f"{name}.".startswith(f"{prefix}.") for prefix in (*ALLOWED, *_allowed_besides())):
        raise ImportError(f"{name} may not be imported for a configuration")
    return importlib.import_module(name)


class Parser(LightningArgumentParser):
    """A LightningArgumentParser with short errors, which say where in a configuration the mistake stands."""

    arguments: Sequence[str] = ()
    """The command line."""
    folder = ""
    """Where the command runs: while a configuration is parsed, the process is in that one's folder."""

    @classmethod
    def begin(cls, arguments: Sequence[str]) -> None:
        """Note what is going to be parsed."""
        Parser.arguments, Parser.folder = arguments, os.getcwd()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": PROGRAM} | kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        refuse_repeated(config_files(Parser.arguments))
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            raise DataError(_broken_yaml(str(error), Parser.arguments)) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        with contextlib.chdir(Parser.folder or "."):
            told = explain(parser, message, Parser.arguments)
        sys.stderr.write(f"{PROGRAM}: error: {told}\n")
        self.exit(2)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        return []  # argparse would take --trainer.max_epoch for --trainer.max_epochs


def refused(error: BaseException) -> DataError:
    """What a constructor complains of, with the line of the configuration where that is known."""
    return DataError(with_place(complaint_of(error), config_files(Parser.arguments), Parser.arguments))


def explain(parser: LightningArgumentParser, message: str, arguments: Sequence[str]) -> str:
    """One of jsonargparse's messages, in one to three lines.

    Args:
        parser: knows the keys.
        message: jsonargparse's message.
        arguments: the command line.
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        return (
            f"{_quoted(denied[1], arguments)} is not allowed in {keys[0] if keys else 'a configuration'}: a class may "
            f"come from {', '.join(ALLOWED)}\n"
            f"  (for classes of your own add --allow {denied[1].split('.')[0]}, or set "
            f"KEDIT_ALLOW={denied[1].split('.')[0]} in the environment)"
        )
    if unknown := re.search(r"(?:does not accept option|Option) '([^']+)'|[Uu]nrecognized arguments: (\S+)", message):
        word = (unknown[1] or unknown[2]).lstrip("-").split("=")[0]
        keys, path = _place(message, unknown.start())
        if path:
            if group := re.search(r"Group '([^']+)' $", message[: unknown.start()]):
                word = f"{group[1]}.{word}"
            path, key = _inner_class(path, word.split(".")[:-1]), ".".join([*keys, word])
            return _unknown_key(key, _parameters(path), arguments, f" of {path}", last_only=True)
        if unknown[2] and not unknown[2].startswith("-"):
            return f"{unknown[2]!r} is too much: an argument is given as --key value"
        return _unknown_key(word, [action.dest for action in parser._actions], arguments)
    if spaced := re.search(r'Spaces not allowed in keys: "(.*)"', message):  # of a dict, under a key that is unknown
        return _spaced(spaced[1], {action.dest.split(".")[0] for action in parser._actions}, arguments)
    if required := re.search(r"arguments are required: (.+)|Key \"([^\"]+)\" is required", message):
        keys, path = _place(message, required.start())
        names = re.sub(r"\b(fit|validate|test|predict)\.", "", required[1] or required[2])
        if path:
            return f"{'.'.join(keys) or 'configuration'}: {_quoted(path, arguments)} needs {names}"
        return f"missing: {names} (give it in a --config FILE or as --{names.split(',')[0].strip()})"
    if wrong := re.search(
        r"given class_path '([^']+)':\s+(?:module|No module|\S+ has no '|.*[Ii]mport)"
        r"|class: module .*Got value: \w+\(class_path='([^']+)'"
        r"|path (\S+) does not correspond to a subclass|Expected a dot import path string: (\S+)",
        message,
    ):
        keys, _ = _place(message, wrong.start())
        plain = re.findall(r"- Expected an? <class '(\w+)'>", message[: wrong.start()])
        if wrong[4] and plain:  # lr: fast, where the learning rate may be a tensor too
            return f"{'.'.join(keys)}: wanted {plain[-1]}, got {wrong[4]!r}{_where(keys[-1], arguments, wrong[4])}"
        return _unknown_class(".".join(keys) or "class_path", next(filter(None, wrong.groups())), message, arguments)
    if "config" in keys and (folder := re.search(r"Path is not a file: '([^']+)'", message)):
        return f"--config {os.path.relpath(folder[1])}: is a folder, wanted a YAML file"
    if message.startswith("Unexpected config"):
        return _no_mapping(message, arguments)
    if "config" in keys and (missing := re.search(r"File does not exist: '([^']+)'", message)):
        return f"--config {os.path.relpath(missing[1])}: there is no such file{_nearest_file(missing[1])}"
    if "Problems parsing config" in message or "Unable to load config" in message:
        return _broken_yaml(message, arguments)
    if keys:
        return _wrong_value(keys, message, arguments)
    return "\n  ".join(line.strip() for line in message.strip().splitlines()[:3])


def _place(message: str, at: int) -> tuple[list[str], str]:
    """The keys around a place in a nested message, outermost first, and the innermost class around it ("" if none)."""
    rest = message[at:].partition("\n")[0]
    named = re.search(r"Got value: \w+\(class_path='([^']+)'", rest)  # a callable class says it behind
    lines = message[:at].splitlines()
    keys: list[str] = []
    path, indent = named[1] if named else "", 10_000
    for line in reversed(lines):
        if line.strip() and _indent(line) < indent:
            indent = _indent(line)
            keys = re.findall(r'Parser key "([^"]+)"', line) + keys
            given = re.search(r"given class_path '([^']+)'", line)
            path = path or (given[1] if given else "")
    return keys, path


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _inner_class(class_path: str, names: Sequence[str]) -> str:
    """The class of a class' parameter, of that one's parameter, and so on; as far as annotations tell."""
    for name in names:
        module, _, last = class_path.rpartition(".")
        try:
            hint = typing.get_type_hints(getattr(_module(module), last).__init__).get(name)
        except (ImportError, AttributeError):
            break
        inner = next((h for h in (hint, *typing.get_args(hint)) if inspect.isclass(h) and h is not type(None)), None)
        if inner is None:
            break
        class_path = f"{inner.__module__}.{inner.__qualname__}"
    return class_path


def _no_mapping(message: str, arguments: Sequence[str]) -> str:
    for path in config_files(arguments):
        with open(path, encoding="utf-8") as file:
            given = yaml.safe_load(file)
        if not isinstance(given, dict):
            what = {type(None): "nothing", list: "a list"}.get(type(given), repr(given)[:60])
            return f"--config {path}: wanted keys with values, as in `model: ...`, got {what}"
    return "\n  ".join(message.strip().splitlines()[:2])


def _unknown_key(
    key: str, known: Iterable[str], arguments: Sequence[str], of: str = "", *, last_only: bool = False
) -> str:
    word = key.rsplit(".", 1)[-1] if last_only else key
    near = nearest(word, known)
    # below a wrong first part everything is wrong: modle.class_path
    if not near and "." in key and not last_only:
        near = nearest(key.split(".")[0], {name.split(".")[0] for name in known})
    return f"unknown key {key}{of}{_where(key, arguments)}" + (f"\n  did you mean {near}?" if near else "")


def _spaced(key: str, known: set[str], arguments: Sequence[str]) -> str:
    for _, root in trees(config_files(arguments)):
        if unknown := [names[0] for names, _, _ in dotted(root) if names[0] not in known]:
            return _unknown_key(unknown[0], known, arguments)
    return f"unknown key {key!r}{_where(key, arguments)}: there are none with spaces"


def _unknown_class(key: str, path: str, message: str, arguments: Sequence[str]) -> str:
    if base := re.search(r"does not correspond to a subclass of (\S+)", message):
        return f"{key}: {_quoted(path, arguments)} is no {base[1]}"
    module_name, _, name = path.rpartition(".")
    near = ""
    try:
        classes = _classes(_module(module_name))
        near = nearest(name, classes)
        near = near and f"{module_name}.{near}"
    except (ImportError, ValueError):
        every = {f"{module}.{n}" for module in _ours() for n in _classes(sys.modules[module])}
        near = nearest(path, every) or nearest(f"kedit.{path}", every)
    reason = re.search(r"(?:module .* has no attribute .*|No module named .*|\S+ has no '.*)", message)
    hint = f"\n  did you mean {near}?" if near else f"\n  {reason[0]}" if reason else ""
    return f"{key}: unknown class {_quoted(path, arguments)}{hint}"


def _wrong_value(keys: list[str], message: str, arguments: Sequence[str]) -> str:
    key = ".".join(keys)
    given = re.search(r"(?:Got value|Given value): (.+)", message)
    where = _where(key, arguments, given[1].strip().strip("'") if given else None)
    wanted = re.findall(r"Expected an? (.+?)(?:\. Got value.*|\n|$)", message)
    if len(keys) > 1 and len(wanted) > 1:
        wanted.pop()  # what the outer class might have been instead
    options = [option.strip(" '\"") for text in wanted if "Literal[" in text for option in text[15:-1].split(",")]
    if given is None or not wanted:
        lines = [line.strip(" -") for line in message.splitlines()[1:] if line.strip()] or [message]
        return "\n  ".join([f"{key}{where}: {lines[0]}", *lines[1:2]])
    value = given[1].strip().strip("'")
    if options:
        near = nearest(value, options)
        more = f"\n  did you mean {near}?" if near else ""
        return f"{key}: wanted one of {', '.join(options)}, got {value!r}{where}{more}"
    names = [re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("NoneType", "null") for text in wanted]
    return f"{key}: wanted {' or '.join(dict.fromkeys(names))}, got {value!r}{where}"


def _broken_yaml(message: str, arguments: Sequence[str]) -> str:
    for path in config_files(arguments):
        try:
            with open(path, encoding="utf-8") as file:
                yaml.safe_load(file)
        except UnicodeDecodeError as error:
            return f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,}"
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            return f"{path}{f':{mark.line + 1}' if mark else ''} is not YAML: {getattr(error, 'problem', error)}"
        except OSError as error:
            return str(error)
    return "\n  ".join(message.splitlines()[:3])


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that is most alike, empty where none is much alike; a matching last part counts too."""
    known = sorted({str(name) for name in known})
    if found := difflib.get_close_matches(word, known, 1, 0.75):
        return found[0]
    last = {name.rsplit(".", 1)[-1]: name for name in known}
    found = difflib.get_close_matches(word.rsplit(".", 1)[-1], last, 1, 0.8)
    return last[found[0]] if found else ""


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    found: list[str] = []
    try:
        bases = getattr(_module(module), name).__mro__
    except (ImportError, AttributeError):
        return found
    for base in bases:
        parameters = inspect.signature(base.__init__).parameters.values()
        found += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _classes(module: ModuleType) -> list[str]:
    """Names of a module's classes, those included that it looks up when they are first used."""
    return [*getattr(module, "__all__", ()), *(name for name, value in vars(module).items() if inspect.isclass(value))]


def _ours() -> list[str]:
    return [name for name in list(sys.modules) if name.startswith(("kedit.", "lightning.pytorch.callbacks"))]


def config_files(arguments: Sequence[str]) -> list[str]:
    """The configurations that a command line names, in its order."""
    given = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word in ("--config", "-c")]
    return given + [word.split("=", 1)[1] for word in arguments if word.startswith("--config=")]


def _where(key: str, arguments: Sequence[str], value: str | None = None) -> str:
    """In which configuration file, and in which line, a key stands, as ` (file:line)`; empty where in none."""
    last = key.rsplit(".", 1)[-1]
    if any(word.lstrip("-").split("=")[0].endswith(last) for word in arguments if word.startswith("--")):
        return ""
    for path, root in reversed([*trees(config_files(arguments))]):
        if named := key_named(key, root, value):
            return f" ({path}:{named[1].start_mark.line + 1})"
    return ""


def _quoted(word: str, arguments: Sequence[str]) -> str:
    return word + _find(word, arguments)


def _find(word: str, arguments: Sequence[str]) -> str:
    for path, root in reversed([*trees(config_files(arguments))]):
        nodes = [root]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.ScalarNode) and node.value == word:
                return f" ({path}:{node.start_mark.line + 1})"
            if isinstance(node, yaml.MappingNode):
                nodes.extend(inner for pair in node.value for inner in pair)
            elif isinstance(node, yaml.SequenceNode):
                nodes.extend(node.value)
    return ""


def _nearest_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return ""
    near = nearest(os.path.basename(path), os.listdir(folder))
    return f"\n  did you mean {os.path.relpath(os.path.join(folder, near))}?" if near else ""
