"""A plain function as a command: its parameters are its keys, its docstring is the help. Knows no function."""

import json
import re
import sys
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ActionConfigFile
from transformers.utils import logging as transformers_logging

from kedit.editing.sources import DataError
from kedit.running.parsing import PROGRAM, Parser, nearest, refused, restrict_imports

TRUTHS = ("true", "false", "yes", "no")


def call(function: Callable[..., Any], command: str, arguments: Sequence[str], positional: Sequence[str] = ()) -> Any:
    """Parse a command line (and --config files) for a function, and call it.

    Args:
        function: has type hints and an `Args:` section.
        command: name of the command.
        arguments: the command line after the name. A list may be given as `--key one two three`, true as `--key`.
        positional: parameters that may be given without their names, in this order; a list takes all that is left.
            Behind `--` nothing is a key.

    Raises:
        DataError: a constructor refuses a value, or a key stands twice; other mistakes end the program, with 2.
    """
    restrict_imports()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # between two libraries
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a bar in a log file is many lines
    Parser.begin(arguments)
    parser = Parser(
        prog=f"{PROGRAM} {command}", description=(function.__doc__ or "").split("\n\n")[0].strip(), env_prefix="KEDIT"
    )
    if positional:
        parser.usage = f"{parser.prog} [--key value ...] {' '.join(f'[{name.upper()}]' for name in positional)}"
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the keys below")
    parser.add_function_arguments(function, as_group=False, fail_untyped=False)
    given = parser.parse_args(_named(function, list(arguments), list(positional)))
    given.pop("config", None)
    return function(**_made(parser, given))


def _made(parser: Parser, given: Any) -> dict[str, Any]:
    """The parameters as objects.

    Raises:
        DataError: a constructor refuses what it is told; the option, file and line are named where they are known.
    """
    try:
        return dict(parser.instantiate_classes(given).as_dict())
    except (ValueError, TypeError) as error:  # DataError is one; jsonargparse wraps it
        raise refused(error) from error


Choices = Mapping[str, tuple[Callable[..., Any], str, Sequence[str]]]
"""Functions by the word that chooses them, with a summary, and the parameters that need no name."""


def choose(choices: Choices, command: str, arguments: Sequence[str]) -> Any:
    """`call` the function that the first word of a command line names.

    Raises:
        DataError: it names none.
    """
    word, *rest = arguments or ["--help"]
    if word in ("-h", "--help"):
        width = max(map(len, choices))
        lines = [f"  {name:<{width}}  {summary}" for name, (_, summary, _) in choices.items()]
        print("\n".join([f"usage: {PROGRAM} {command} WHAT [--key value ...]", "", "what:", *lines]))
        return None
    if word not in choices:
        near = nearest(word, choices)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(choices)}"
        raise DataError(f"{command} {word}: unknown: {hint}")
    function, _, positional = choices[word]
    return call(function, f"{command} {word}", rest, positional)


def _named(function: Callable[..., Any], arguments: list[str], positional: list[str]) -> list[str]:
    """Words of a command line, all as `--key=value`: `--dump a b` as `--dump=["a", "b"]` where that is a list, `--json`
    as `--json=true` where it is a truth, and words without a key under the names of `positional`.
    """
    hints = typing.get_type_hints(function)
    lists = {name for name, hint in hints.items() if "list[" in str(hint) or "Sequence[" in str(hint)}
    result: list[str] = []
    loose: list[str] = []
    while arguments:
        word = arguments.pop(0)
        name = word.removeprefix("--")
        if word == "--" and positional:
            loose += arguments
            break
        if word.startswith("--") and name in lists:
            values = []
            while arguments and not arguments[0].startswith("-"):
                values.append(arguments.pop(0))
            is_json = len(values) == 1 and values[0].startswith("[")
            result.append(f"{word}={values[0] if is_json else json.dumps(values)}")
        elif word.startswith("--") and hints.get(name) is bool:
            result.append(f"{word}={arguments.pop(0) if arguments and arguments[0].lower() in TRUTHS else 'true'}")
        elif positional and arguments and (word == "-c" or (word.startswith("--") and name in {*hints, "config"})):
            result.append(f"--{name.replace('-c', 'config')}={arguments.pop(0)}")
        elif not positional or (word.startswith("-") and not re.match(r"-\d|[^=]*\s", word)):
            result.append(word)  # a key; none has a space in it, or begins as -1 does
        else:
            loose.append(word)
    for name in positional:
        if loose:
            result.append(f"--{name}={json.dumps(loose) if name in lists else loose[0]}")
            loose = [] if name in lists else loose[1:]
    return [*result, *loose]
