"""A plain function as a command: its parameters are its keys, its docstring is the help. Knows no function."""

import json
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ActionConfigFile
from transformers.utils import logging as transformers_logging

from kedit.running.parsing import PROGRAM, Parser, restrict_imports


def call(function: Callable[..., Any], command: str, arguments: Sequence[str]) -> Any:
    """Parse a command line (and --config files) for a function, and call it.

    Args:
        function: has type hints and an `Args:` section.
        command: name of the command.
        arguments: the command line after the name. A list may be given as `--key one two three`.
    """
    restrict_imports()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # between two libraries
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a bar in a log file is many lines
    Parser.arguments = arguments
    parser = Parser(
        prog=f"{PROGRAM} {command}", description=(function.__doc__ or "").split("\n\n")[0].strip(), env_prefix="KEDIT"
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the keys below")
    parser.add_function_arguments(function, as_group=False, fail_untyped=False)
    given = parser.parse_args(_lists(function, list(arguments)))
    given.pop("config", None)
    return function(**parser.instantiate_classes(given).as_dict())


def _lists(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """`--dump a b` to `--dump=["a", "b"]` for parameters that are lists."""
    hints = typing.get_type_hints(function)
    lists = {f"--{name}" for name, hint in hints.items() if "list[" in str(hint) or "Sequence[" in str(hint)}
    result: list[str] = []
    while arguments:
        word = arguments.pop(0)
        if word in lists:
            values = []
            while arguments and not arguments[0].startswith("-"):
                values.append(arguments.pop(0))
            if not (len(values) == 1 and values[0].startswith("[")):
                word = f"{word}={json.dumps(values)}"
            else:
                word = f"{word}={values[0]}"
        result.append(word)
    return result
