"""The commands `edit` and `ask`. Knows the editor, and nothing of training."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedit.editing.edit_file import read_edits
from kedit.editing.edits import Edit
from kedit.editing.records import existing_file
from kedit.editing.sources import DataError
from kedit.lm.backbones import Dtype
from kedit.recipe.editor import Answer, RecipeEditor, edits_folder, open_memory
from kedit.recipe.memory import Decision, EditReport
from kedit.recipe.segments import RepositoryError
from kedit.recipe.tables import DATABASE, StoredEdit
from kedit.recipe.trained import find_trained
from kedit.running.pace import Pace

BATCH = 1000
"""Edits of a file that are written, and can be asked for, at once."""


def edit(
    run: str,
    prompt: str = "",
    target: str = "",
    file: Path | None = None,
    id: str = "",
    source: str | None = None,
    repository: Path | None = None,
    rate: float = 0.01,
    base: str | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Store an edit, or a file of them: what the model of a run is to answer from now on.

    Args:
        run: name of a run of RECIPE, its folder of checkpoints, one of these, or an exported folder.
        prompt: what is asked.
        target: what is to be answered.
        file: many edits instead, JSON lines of {prompt, target, id, subject, relation}; only the first two are needed.
        id: by which the edit can be forgotten; by default a number.
        source: where the edits come from, as is kept with them.
        repository: folder of the edits; by default `edits` in the run's.
        rate: wanted share of questions that no edit concerns and that fire one all the same.
        base: hub id or folder of the language model, where it is no longer what the run was given.
        device: cpu, cuda, ...; by default cuda where there is one.
        json: print a JSON object a line.
    """
    if file is not None and (prompt or target):
        raise DataError("prompt and --file are both given: give either one edit or a file of them")
    if file is None and not (prompt and target):
        raise DataError('wanted an edit: give "PROMPT" "TARGET", or --file FILE')
    edits = [Edit(id, prompt, target, where="the command line")] if file is None else read_edits(file)
    with with_remedy(run, repository), open_memory(run, repository, rate, device, base).memory as memory:
        pace = Pace("editing", len(edits), "edits")
        report = memory.add(edits, source, pace.at, BATCH)
        decision = memory.decide([prompt])[0] if file is None else None
    if json:
        for one in report.stored:
            print_json(record(one) | ({} if decision is None else _decided(decision)))
        return
    if decision is None:
        rate = len(report.stored) / max(report.seconds, 1e-9)
        print(f"{became(report.written, report.replaced, report.known)} ({report.seconds:.1f} s, {rate:,.0f} a second)")
        return
    print(f"{_became(report)}: {told(report.stored[0])}")
    same = decision.edit is not None and decision.edit.number == report.stored[0].number
    if decision.fired and same:
        print(f"its own prompt fires it: {_numbers(decision, rate)}")
    else:
        nearest = "" if same or decision.edit is None else f" but is nearer to {told(decision.edit)}"
        print(f"its own prompt does not fire it{nearest}: {_numbers(decision, rate)}")


def ask(
    run: str,
    questions: list[str] | None = None,
    file: Path | None = None,
    repository: Path | None = None,
    rate: float = 0.01,
    max_new_tokens: int = 32,
    stop: list[str] | None = None,
    chat: bool = False,
    base: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    faiss: str | None = None,
    json: bool = False,
) -> None:
    """Ask the model of a run, with its memory of edits and without, and tell which edit fired.

    Args:
        run: name of a run of RECIPE, its folder of checkpoints, one of these, or an exported folder.
        questions: what is asked.
        file: further questions, one a line.
        repository: folder of the edits; by default `edits` in the run's.
        rate: wanted share of questions that no edit concerns and that fire one all the same.
        max_new_tokens: longest answer in tokens.
        stop: marks before which an answer ends, as in a full stop.
        chat: apply the model's chat template around a question.
        base: hub id or folder of the language model, where it is no longer what the run was given.
        dtype: of its weights; by default as in training.
        device: cpu, cuda, ...; by default cuda where there is one.
        faiss: search by FAISS, with this index: Flat, "IVF1024,Flat", ...
        json: print a JSON object a line.
    """
    asked = list(questions or [])
    if file is not None:
        asked += _lines(file)
    asked = [question.strip() for question in asked if question.strip()]
    if not asked:
        raise DataError('no question: give "QUESTION", several of them, or --file FILE with one a line')
    # beside somebody who edits, where there are edits
    folder = edits_folder(find_trained(run), repository)
    beside = (folder / DATABASE).is_file()
    if repository is not None and not folder.exists():
        raise DataError(f"--repository {repository}: no such folder: `edit` makes it with the first edit")
    with (
        with_remedy(run, repository),
        RecipeEditor.from_run(run, repository, rate, device, None, base, dtype, beside, faiss) as editor,
    ):
        for answer in editor.ask(asked, max_new_tokens, chat, stop=stop):
            if json:
                print_json(_answered(answer) | {"rate": rate})
            else:
                print(_shown(answer, rate))


def _lines(file: Path) -> list[str]:
    try:
        return existing_file(file, "file").read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason}, byte {error.start + 1}): save it as UTF-8") from error


@contextmanager
def with_remedy(run: str, repository: Path | None) -> Iterator[None]:
    """Complaints about keys name the command that makes them again."""
    try:
        yield
    except RepositoryError as error:
        if "reencode" not in str(error):
            raise
        where = "" if repository is None else f" --repository {repository}"
        raise RepositoryError(f"{error}\n`python -m kedit edits reencode --run {run}{where}` does that") from error


# shown ----------------------------------------------------------------------------------------------------------------


def print_json(values: Mapping[str, Any]) -> None:
    print(json.dumps(values, ensure_ascii=False), flush=True)


def record(one: StoredEdit) -> dict[str, Any]:
    """A stored edit as a JSON object."""
    return {
        "id": one.id, "number": one.number, "prompt": one.edit.prompt, "target": one.edit.target,
        "subject": one.edit.subject, "relation": one.edit.relation, "created": one.created, "source": one.source,
        "live": one.live, "replaced_by": one.replaced_by,
    }  # fmt: skip


def told(one: StoredEdit) -> str:
    """A stored edit in a line."""
    return f"{one.id}  {_short(one.edit.prompt)} -> {_short(one.edit.target)}"


def _short(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _decided(decision: Decision) -> dict[str, Any]:
    found = decision.edit is not None
    return {
        "fired": decision.fired,
        "similarity": decision.similarity if found else None,
        "threshold": decision.threshold,
        "score": decision.score if found else None,
        "margin": decision.margin,
    }


def _answered(answer: Answer) -> dict[str, Any]:
    edit = None if answer.decision.edit is None else record(answer.decision.edit)
    return {"question": answer.prompt, "answer": answer.answer, "without": answer.without,
            **_decided(answer.decision), "edit": edit}  # fmt: skip


def _shown(answer: Answer, rate: float) -> str:
    decision = answer.decision
    if decision.edit is None:
        fired = "no edit is stored"
    elif decision.fired:
        fired = f"fired: {told(decision.edit)}\n  {_numbers(decision, rate)}"
    else:
        fired = f"no edit fired; the nearest: {told(decision.edit)}\n  {_numbers(decision, rate)}"
    lines = [
        answer.prompt,
        f"  with the memory: {answer.answer.strip()}",
        f"  without:         {answer.without.strip()}",
    ]
    return "\n".join([*lines, f"  {fired}"])


def _numbers(decision: Decision, rate: float) -> str:
    return (
        f"score {decision.score:.3f} = similarity {decision.similarity:.3f} - sentinel's {decision.threshold:.3f}; "
        f"what is above the margin {decision.margin:.3f} fires (wanted rate {rate:g})"
    )


def _became(report: EditReport) -> str:
    if report.known:
        return "stood already"
    return "stored in place of an earlier one" if report.replaced else "stored"


def became(written: int, replaced: int, known: int) -> str:
    """What became of edits, in a line."""
    return (
        f"{written:,} edits written, {replaced:,} of them in place of one with the same prompt; {known:,} stood already"
    )
