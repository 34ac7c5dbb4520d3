"""What a command's own parser says of a configuration. Nothing is trained, loaded or written."""

import contextlib
import functools
import inspect
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kedit.editing.sources import DataError
from kedit.running.complaints import complaint_of
from kedit.running.errors import told
from kedit.running.places import check_places

ABSENT = "kedit-stand-in"
"""Begins the names of empty files that stand for absent ones, of which was told, so that the rest is parsed."""
TRAINING = {"model", "data", "trainer", "run", "checkpoint", "guard", "seed_everything", "test_after_fit", "ckpt_path"}


def _functions() -> dict[str, Callable[..., Any]]:
    import kedit.benchmarks
    import kedit.contestants
    import kedit.world  # noqa: F401  short class names resolve
    from kedit.comparing.command import compare
    from kedit.distill.generate import transfer
    from kedit.kilm import build_corpus
    from kedit.recipe.commands import ask, edit
    from kedit.running.convert import convert
    from kedit.running.export import export

    every: list[Callable[..., Any]] = [build_corpus, transfer, export, convert, edit, ask, compare]
    return {function.__name__.removeprefix("build_"): function for function in every}


def parser_for(keys: set[str]) -> tuple[Callable[[str], None], str]:
    """What parses a configuration with these keys, and the command's name."""
    functions = _functions()
    counts = {name: len(keys & set(inspect.signature(one).parameters)) for name, one in functions.items()}
    best = max(counts, key=lambda name: counts[name])
    if counts[best] > len(keys & TRAINING):
        return functools.partial(_call, functions[best], best), best
    return _train, "fit"


def _call(function: Callable[..., Any], command: str, file: str) -> None:
    from kedit.running.functions import call

    @functools.wraps(function)
    def nothing(**given: Any) -> None:
        """Of the same parameters."""
        if command == "compare":
            _check_comparison(**given)

    call(nothing, command, ["--config", file])


def _check_comparison(bases: Any, contestants: Any, **given: Any) -> None:
    """What can be told of a comparison before a model is loaded; of contestants also what they read."""
    from kedit.comparing.command import check_plan

    for name, way in contestants.items():
        try:
            gone = [str(file) for file in way.files() if not file.exists()]
        except (DataError, OSError) as error:
            raise DataError(f"contestants.{name}: {told(error)}") from error
        if gone:
            raise DataError(f"contestants.{name}: names what is not there: {gone[0]}")
    keys = inspect.signature(check_plan).parameters.keys() & given.keys()
    check_plan(bases, contestants, **{key: given[key] for key in keys})


def _train(file: str) -> None:
    """Parse a configuration for fit, and build its model and data, whose constructors look at what they are told."""
    from kedit.running.application import Application  # isort: skip  before DeepSpeed is imported
    import kedit.benchmarks
    import kedit.distill.module
    import kedit.distill.server
    import kedit.kilm
    import kedit.recipe.module
    import kedit.world  # noqa: F401  short class names resolve
    from kedit.editing.module import EditingModule
    from kedit.running.runs import Run

    class Parsed(Exception):
        pass

    class Parsing(Application):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            config = self.config["fit"]
            parts = {part: config[part].as_dict() for part in ("trainer", "checkpoint") if config.get(part) is not None}
            check_places(parts, Run(**config.run.as_dict()))
            for part in ("callbacks", "logger", "strategy", "plugins", "profiler"):
                config.trainer[part] = None  # these may reach for devices and folders
            self.instantiate_only(parser)
            raise Parsed

        def instantiate_only(self, parser: Any) -> None:
            self.parser = parser
            self.parser.instantiate_classes(self.config)

    with contextlib.suppress(Parsed):
        Parsing(EditingModule, "fit", ["--config", file])


def complaint(parse: Callable[[str], None], root: yaml.Node) -> str:
    """What the parser says of a configuration; empty where it takes it."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "config.yaml")
        text = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)
        for name in set(re.findall(rf"\b{ABSENT}\S*\b", text)):
            (Path(folder) / name).touch()
        Path(file).write_text(text.replace(ABSENT, f"{folder}/{ABSENT}"), encoding="utf-8")
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                parse(file)
        except SystemExit as stop:
            text = said.getvalue() if stop.code else ""
            message = text[text.rfind("python -m kedit: error: ") :].removeprefix("python -m kedit: error: ").strip()
        except Exception as error:
            message = complaint_of(error)
        else:
            message = ""
        return re.sub(rf"(--config )?{re.escape(file)}", "FILE", message)
