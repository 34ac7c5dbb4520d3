"""Every command of the application. Heavy packages are imported when a command runs: `--help` answers at once."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

PROGRAM = "python -m kedit"


def train(command: str, arguments: Sequence[str]) -> None:
    from kedit.running.application import Application  # isort: skip  before DeepSpeed is imported
    import kedit.benchmarks
    import kedit.distill.module
    import kedit.distill.server
    import kedit.editing.edit_file
    import kedit.kilm
    import kedit.recipe.module
    import kedit.world  # noqa: F401  short class names resolve
    from kedit.editing.module import EditingModule

    Application(EditingModule, command, arguments)


def corpus(command: str, arguments: Sequence[str]) -> None:
    from kedit.kilm import build_corpus
    from kedit.running.functions import call

    call(build_corpus, command, arguments)


def transfer(command: str, arguments: Sequence[str]) -> None:
    import kedit.benchmarks
    import kedit.distill.server
    import kedit.world  # noqa: F401  short class names resolve
    from kedit.distill.generate import transfer
    from kedit.running.functions import call

    call(transfer, command, arguments)


def export(command: str, arguments: Sequence[str]) -> None:
    from kedit.running.export import export
    from kedit.running.functions import call

    call(export, command, arguments)


def convert(command: str, arguments: Sequence[str]) -> None:
    from kedit.running.convert import convert
    from kedit.running.functions import call

    call(convert, command, arguments)


def edit(command: str, arguments: Sequence[str]) -> None:
    from kedit.recipe.commands import edit
    from kedit.running.functions import call

    call(edit, command, arguments, ["prompt", "target"])


def ask(command: str, arguments: Sequence[str]) -> None:
    from kedit.recipe.commands import ask
    from kedit.running.functions import call

    call(ask, command, arguments, ["questions"])


def edits(command: str, arguments: Sequence[str]) -> None:
    from kedit.recipe.store_commands import SUBCOMMANDS
    from kedit.running.functions import choose

    choose(SUBCOMMANDS, command, arguments)


def check(command: str, arguments: Sequence[str]) -> None:
    from kedit.running.application import Application  # noqa: F401  before DeepSpeed is imported
    from kedit.checking.command import check  # isort: skip
    from kedit.running.functions import call

    call(check, command, arguments, ["files"])


def compare(command: str, arguments: Sequence[str]) -> None:
    import kedit.benchmarks
    import kedit.contestants
    import kedit.editing.edit_file
    import kedit.world  # short class names resolve
    from kedit.comparing.command import compare
    from kedit.running.functions import call

    if any(word.startswith("--contestants.help") for word in arguments):
        for name in kedit.contestants.__all__:
            getattr(kedit.contestants, name)  # a short name resolves to what is there
    call(compare, command, arguments)


COMMANDS: dict[str, tuple[str, Callable[[str, Sequence[str]], None]]] = {
    "fit": ("train a model as a configuration says; go on with a run by --ckpt_path last", train),
    "validate": ("the validation metrics of a run's best checkpoint", train),
    "test": ("the test metrics of a run's best checkpoint, as a table and in results.json", train),
    "predict": ("answers of a run's best checkpoint for a JSONL file, in predictions.jsonl", train),
    "corpus": ("a Wikipedia dump, or a made-up world, to a tokenised corpus to train on", corpus),
    "transfer": (
        "facts to the sentences by which they are learned, written by a model, a server or from a file",
        transfer,
    ),
    "export": ("a checkpoint to a Hugging Face folder", export),
    "convert": ("a ZeRO checkpoint to one for another number of devices", convert),
    "edit": ("store an edit, or a file of them, in the memory beside a run's model", edit),
    "ask": ("ask a run's model, with its memory of edits and without, and see which edit fired", ask),
    "check": ("read files of edits, facts, corpora, configurations, ... and tell all that is wrong with them", check),
    "edits": ("list, find, forget, export, import, ... the edits of a run", edits),
    "compare": ("ways of getting the same facts into a model side by side, in one report", compare),
}


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (summary, _) in COMMANDS.items()]
    head = [f"usage: {PROGRAM} COMMAND [--config FILE ...] [--key value ...]", "", "commands:"]
    foot = f"""
{PROGRAM} COMMAND --help lists a command's keys; --print_config prints its configuration;
--allow PACKAGE lets configurations name classes of a package of your own: naming one runs it;
--debug shows the traceback of an error that is otherwise told in a few lines."""
    return "\n".join([*head, *lines, foot])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or 2 for wrong usage or bad input (told in one to three lines), 1 for an error of our own (with its
        traceback), 130 for Ctrl-C. A training that SIGTERM or SIGUSR1 stopped has saved its state and ends with 75: the
        same command with --ckpt_path last goes on. 143 and 138 are those signals where there was nothing to save.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("KEDIT_DEBUG", "0") not in ("", "0")
    arguments = _allow([argument for argument in arguments if argument != "--debug"])
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"{PROGRAM}: error: unknown command {command!r}: {hint}", file=sys.stderr)
        return 2
    try:
        COMMANDS[command][1](command, rest)
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit code 1
        return _interrupted() if isinstance(stop.__context__, KeyboardInterrupt) else _code(stop)
    except Exception as error:
        from kedit.running.errors import told

        message = told(error)
        if message is None or debug:
            traceback.print_exc()
        if message is not None:
            print(f"{PROGRAM} {command}: error: {message}", file=sys.stderr)
        return 1 if message is None else 2
    return 0


def _allow(arguments: list[str]) -> list[str]:
    """Take `--allow PACKAGE` out of the command line: whose classes, besides ours, configurations may name.

    In the environment, so that the processes of a node have it too; a configuration has no such key.
    """
    rest, allowed = [], [os.environ.get("KEDIT_ALLOW", "")]
    while arguments:
        word = arguments.pop(0)
        if word == "--allow":
            allowed.append(arguments.pop(0) if arguments else "--allow")  # which is no package, and is told so
        elif word.startswith("--allow="):
            allowed.append(word.removeprefix("--allow="))
        else:
            rest.append(word)
    if len(allowed) > 1:
        os.environ["KEDIT_ALLOW"] = ",".join(filter(None, allowed))
    return rest


def _interrupted() -> int:
    print(f"{PROGRAM}: interrupted", file=sys.stderr)
    return 130


def _code(stop: SystemExit) -> int:
    if type(stop).__name__ == "SIGTERMException":  # Lightning's, with code 0: a scheduler must not take it for success
        return 143
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
