"""The commands `edits ...`: what is done with a repository of edits. Only those that make keys load networks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedit.editing.sources import DataError
from kedit.recipe.commands import became, print_json, record, told, with_remedy
from kedit.recipe.editor import RecipeEditor, edits_folder, open_memory
from kedit.recipe.encoding import encode_keys
from kedit.recipe.repository import Repository
from kedit.recipe.tables import Change, StoredEdit
from kedit.recipe.trained import encoder_hash, find_trained, load_networks


def list_edits(
    run: str = "", repository: Path | None = None, offset: int = 0, limit: int = 20, at: int | None = None,
    json: bool = False,
) -> None:  # fmt: skip
    """The edits that stand, the oldest first.

    Args:
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        offset: how many to pass over.
        limit: how many to show.
        at: as they stood after that change of the log.
        json: print a JSON object a line.
    """
    with _opened(run, repository) as store:
        page, count = store.list(offset, limit, at), store.count(at)
        _show(page, json)
        if not json:
            print(f"{len(page):,} of {count:,} edits" + (f", from {offset + 1:,} on" if offset else ""))


def find(text: str, run: str = "", repository: Path | None = None, limit: int = 100, json: bool = False) -> None:
    """Edits that hold a text in prompt, target or subject.

    Args:
        text: what is looked for; a to z in either case.
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        limit: most edits that are shown.
        json: print a JSON object a line.
    """
    with _opened(run, repository) as store:
        found = store.find(text, limit)
        _show(found, json)
        if not json:
            print(f"{len(found):,} edits" + (", the first ones: raise --limit for more" if len(found) == limit else ""))


def history(prompt: str, run: str = "", repository: Path | None = None, json: bool = False) -> None:
    """Every edit there ever was of a prompt, the oldest first.

    Args:
        prompt: the prompt.
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        json: print a JSON object a line.
    """
    with _opened(run, repository) as store:
        _show(store.history(prompt), json)


def forget(ids: list[str], run: str = "", repository: Path | None = None, json: bool = False) -> None:
    """Take edits out, by id. What one of them had replaced does not come back.

    Args:
        ids: which; all of them must stand, or none is taken out.
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        json: print a JSON object a line.
    """
    if not ids:
        raise DataError("nothing to forget: give the ids of edits, as `edits list` shows them")
    with _opened(run, repository, write=True) as store:
        gone = store.forget(ids)
        _show(gone, json)
        if not json:
            print(f"{len(gone):,} edits forgotten, {len(store):,} stand")


def export(
    output: Path, run: str = "", repository: Path | None = None, at: int | None = None, peft: str = "",
    base: str | None = None, device: str | None = None, json: bool = False,
) -> None:  # fmt: skip
    """Write the edits that stand to a file of JSON lines; or the prompt vectors of one edit to a folder for PEFT.

    Args:
        output: the file, or for --peft the folder.
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        at: as they stood after that change of the log.
        peft: id of an edit: its prompt vectors are written, as PEFT's prompt tuning has them.
        base: for --peft: hub id or folder of the language model, where it is no longer what the run was given.
        device: for --peft: cpu, cuda, ...
        json: print a JSON object.
    """
    if peft:
        with (
            with_remedy(run, repository),
            RecipeEditor.from_run(_named(run), repository, device=device, base=base, read_only=True) as editor,
        ):
            editor.save_prompt(peft, output)
        _tell({"output": str(output), "id": peft}, f"{output}: the prompt vectors of edit {peft}", json)
        return
    with _opened(run, repository) as store:
        count = store.export_jsonl(output, at)
    _tell({"output": str(output), "edits": count}, f"{output}: {count:,} edits", json)


def import_edits(
    file: Path, run: str, repository: Path | None = None, base: str | None = None, device: str | None = None,
    json: bool = False,
) -> None:  # fmt: skip
    """Add the edits of an exported file, with their ids, times and sources.

    Args:
        file: JSON lines with prompt and target.
        run: name of a run of RECIPE, its folder, or an exported one.
        repository: folder of the edits; by default `edits` in the run's.
        base: hub id or folder of the language model, where it is no longer what the run was given.
        device: cpu, cuda, ...; by default cuda where there is one.
        json: print a JSON object.
    """
    with with_remedy(run, repository), open_memory(run, repository, device=device, base=base).memory as memory:
        counts = memory.repository.import_jsonl(file, memory.keys, check=memory.check_lengths)
    _tell(counts._asdict(), became(counts.written, counts.replaced, counts.known), json)


def log(run: str = "", repository: Path | None = None, offset: int = 0, limit: int = 20, json: bool = False) -> None:
    """What was done to the edits, the latest first; `roll_back` takes the numbers.

    Args:
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        offset: how many to pass over.
        limit: how many to show.
        json: print a JSON object a line.
    """
    with _opened(run, repository) as store:
        for change in store.log(offset, limit):
            _tell(change._asdict(), _changed(change), json)


def snapshot(message: str, run: str = "", repository: Path | None = None, json: bool = False) -> None:
    """Name the present state in the log, to find it again.

    Args:
        message: the name.
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        json: print a JSON object.
    """
    with _opened(run, repository, write=True) as store:
        number = store.snapshot(message)
    _tell({"number": number, "message": message}, f"{number}  {message}", json)


def roll_back(number: int, run: str = "", repository: Path | None = None, json: bool = False) -> None:
    """Make exactly those edits stand that stood after a change; can itself be rolled back.

    Args:
        number: of the change in the log; 0 for none.
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        json: print a JSON object.
    """
    with _opened(run, repository, write=True) as store:
        change = store.roll_back(number)
    _tell(change._asdict(), _changed(change), json)


def verify(run: str = "", repository: Path | None = None, json: bool = False) -> None:
    """Go through all that is stored and tell the damage.

    Args:
        run: name of a run of RECIPE, its folder, or an exported one; not needed where the repository is named.
        repository: folder of the edits; by default `edits` in the run's.
        json: print a JSON object.
    """
    with _opened(run, repository) as store:
        problems, count = store.verify(), len(store)
    if json:
        print_json({"edits": count, "problems": problems})
    if problems:
        raise DataError("\n".join(problems[:3]))
    if not json:
        print(f"{count:,} edits, no damage")


def reencode(
    run: str, repository: Path | None = None, base: str | None = None, device: str | None = None, json: bool = False
) -> None:
    """Make the keys of all edits again, by the networks that a run has now.

    Args:
        run: name of a run of RECIPE, its folder, or an exported one.
        repository: folder of the edits; by default `edits` in the run's.
        base: hub id or folder of the language model, where it is no longer what the run was given.
        device: cpu, cuda, ...; by default cuda where there is one.
        json: print a JSON object.
    """
    networks, texts, _ = load_networks(run, device, base)
    with _opened(run, repository, write=True) as store:
        encoder = encoder_hash(networks.state_dict())
        before = store.meta["encoder"]
        count = store.reencode(
            encoder, lambda edits: encode_keys(networks, texts, edits).cpu(), key_width=networks.key_width
        )
    line = f"{count:,} keys made again, by the networks {encoder} (before: {before})"
    _tell({"keys": count, "encoder": encoder, "before": before}, line, json)


SUBCOMMANDS: dict[str, tuple[Callable[..., None], str, tuple[str, ...]]] = {
    "list": (list_edits, "the edits that stand", ()),
    "find": (find, "edits that hold a text", ("text",)),
    "history": (history, "every edit there ever was of a prompt", ("prompt",)),
    "forget": (forget, "take edits out, by id", ("ids",)),
    "export": (export, "write them to a file of JSON lines", ("output",)),
    "import": (import_edits, "add those of such a file", ("file",)),
    "log": (log, "what was done to them", ()),
    "snapshot": (snapshot, "name the present state in the log", ("message",)),
    "roll_back": (roll_back, "go back to a state of the log", ("number",)),
    "verify": (verify, "look for damage", ()),
    "reencode": (reencode, "make the keys again, after the networks changed", ()),
}
"""The function of each, a summary, and what may be given without its name."""


@contextmanager
def _opened(run: str, repository: Path | None, write: bool = False) -> Iterator[Repository]:
    """A repository whose keys are not looked at, so that no networks are needed."""
    folder = repository if repository is not None else edits_folder(find_trained(_named(run)))
    with Repository.open(folder, create=False, read_only=not write) as store:
        yield store


def _named(run: str) -> str:
    if not run:
        raise DataError("whose edits: give --run RUN, or --repository FOLDER where that is enough")
    return run


def _show(edits: list[StoredEdit], as_json: bool) -> None:
    for one in edits:
        state = "" if one.live else f"  (replaced by {one.replaced_by})" if one.replaced_by else "  (forgotten)"
        _tell(record(one), told(one) + state, as_json)


def _changed(change: Change) -> str:
    said = f": {change.message}" if change.message else ""
    return f"{change.number}  {change.time}  {change.kind}{said}  (+{change.added:,} -{change.ended:,})"


def _tell(values: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        print_json(values)
    else:
        print(line)
