"""The command `compare`: every way of getting facts into a model, side by side on the same facts, in one report.

Plans the trials, has them run, and writes what they say together. Knows no method.
"""

import datetime
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from kedit.comparing.facts import Defining, FactSet, Surrounded
from kedit.comparing.identity import code, content, described, digest, own_code
from kedit.comparing.measures import share
from kedit.comparing.merging import behind_text, contestant, examples, said
from kedit.comparing.record import Judging, Trial
from kedit.comparing.report import write_report
from kedit.comparing.report_board import write_board
from kedit.comparing.report_text import summary_text
from kedit.comparing.results import BaseModel, Comparison, Contestant, Facts
from kedit.comparing.schedule import Asked, Job, Progress, run_job
from kedit.comparing.verdict import cautions
from kedit.comparing.way import Base, Way
from kedit.editing.conflicts import EditConflicts
from kedit.editing.edits import ASPECTS, EditSource, check_edits
from kedit.editing.records import existing_file
from kedit.editing.sources import DataError, QuestionSource
from kedit.running.lock import only_one
from kedit.running.parsing import Parser
from kedit.running.runs import Run

TEXTS = 200
"""Plain texts whose perplexity is asked."""
LONGEST = 100
"""Characters of a name."""


def compare(
    bases: dict[str, Base],
    contestants: dict[str, Way],
    facts: EditSource,
    seeds: list[int] | None = None,
    judging: Judging | None = None,
    questions: QuestionSource | None = None,
    run: Run | None = None,
    title: str = "Ways of teaching a model new facts",
) -> Comparison:
    """Teach the same facts to the same models in every way that is given, and write what each gives and costs.

    The report is logs/RUN/report.html, with report.md, report.json and TensorBoard's files beside it. Each contestant
    runs in a process of its own, one after another; what is finished is kept in logs/RUN/trials, so that the same
    command goes on where it was stopped, and runs again only what changed.

    Args:
        bases: the models, by the names that the report gives them.
        contestants: ways of getting facts into them, by name; one is `kedit.contestants.AsItIs`.
        facts: what is taught, with the probes that judge it.
        seeds: every contestant that draws anything is tried once with each; [0] by default.
        judging: how they are judged.
        questions: of general knowledge, asked before and after; those without an answer are passed over.
        run: where it is written; run.name is `compare` by default.
        title: of the report.

    Raises:
        DataError: the configuration or the facts are unusable. A contestant that fails is named in the report.
    """
    check_plan(bases, contestants, seeds, run, judging, title)
    seeds, judging, run = [0] if seeds is None else seeds, judging or Judging(), run or Run("compare")
    edits = facts.load()
    if not edits:
        raise DataError("there are no facts to teach: check the source's file and limit")
    what = FactSet(edits, facts if isinstance(facts, Defining) else None)
    warnings = _warnings(what, check_edits(edits), seeds)
    asked = Asked(
        what,
        judging,
        [one for one in questions if one.answers][: judging.qa] if questions is not None else (),
        facts.plain_texts(TEXTS) if isinstance(facts, Surrounded) else (),
    )
    probes = sum(len(edit.all_probes) for edit in edits)
    folder = Path(run.logs) / run.name
    with only_one(folder):
        jobs, unfit = plan(bases, contestants, asked, seeds, folder / "trials")
        for warning in warnings:
            print(f"compare: {warning}", file=sys.stderr, flush=True)
        found = _run(jobs, asked)
        comparison = Comparison(
            title=title,
            date=datetime.date.today().isoformat(),
            command=shlex.join(["python", "-m", "kedit", "compare", *Parser.arguments]),
            config=_config(bases, contestants, facts, seeds, judging, questions),
            seeds=tuple(seeds),
            facts=Facts(len(edits), getattr(facts, "name", type(facts).__name__), probes),
            bases=tuple(_base(name, bases, contestants, found) for name in bases),
            contestants=tuple(_contestants(bases, contestants, found, unfit, len(edits))),
            warnings=tuple(warnings),
        )
        files = write_report(comparison, folder)
        shutil.rmtree(folder / "board", ignore_errors=True)  # TensorBoard would show what is no more
        write_board(comparison, folder / "board")
    print(summary_text(comparison))
    print(f"the report: {files[0]}")
    return comparison


Found = Mapping[tuple[str, str], list[tuple[int, Trial | str]]]
"""By model and contestant, of each seed its trial, or why it failed."""


def plan(
    bases: Mapping[str, Base], contestants: Mapping[str, Way], asked: Asked, seeds: Sequence[int], folder: Path
) -> tuple[list[Job], dict[tuple[str, str], str]]:
    """Which trials are to be run, the unedited models' first; and why others are not, by model and contestant.

    Args:
        bases: the models.
        contestants: the ways.
        asked: facts and how they are judged.
        seeds: of the trials.
        folder: of their records.
    """
    facts, judging = asked.facts, asked.judging
    what = judging, facts.edits, facts.definitions(facts.edits), asked.questions, asked.texts
    read = [] if judging.perplexity is None else content([Path(judging.perplexity)])
    same = [*map(described, what), read, code()]
    jobs: list[Job] = []
    unfit: dict[tuple[str, str], str] = {}
    plain = contestants[_plain(contestants)]
    for base, model in bases.items():
        with _named(f"bases.{base}"):
            model.check(facts.edits, judging.max_new_tokens)
            weights = content([path]) if (path := model.folder) is not None else model.commit
        for name, way in contestants.items():
            if way.bases is not None and base not in way.bases:
                continue
            with _named(f"contestants.{name}"):
                if reason := way.unfit(model, facts):
                    unfit[base, name] = reason
                    continue
                given = replace(way, bases=None)  # on which models it is tried does not matter to a trial
                beside = None if way.method == "base" else plain
                identity = [described(model), weights, described(given), content([*way.files(), *own_code(way)]),
                            described(beside), same]  # fmt: skip
            for seed in seeds if way.seeded else [0]:
                stem = re.sub(r"[^\w.=+-]+", "_", f"{base}-{name}").encode()[:100].decode(errors="ignore")
                record = folder / f"{stem}-{seed}-{digest(*identity, seed)[:12]}.json"
                jobs.append(Job(base, name, seed, way, model, beside, record))
    return sorted(jobs, key=lambda job: job.way.method != "base"), unfit


@contextmanager
def _named(what: str) -> Iterator[None]:
    """What goes wrong within is of this part of the configuration."""
    try:
        yield
    except (DataError, OSError, ValueError) as error:
        raise DataError(f"{what}: {error}") from error


def _run(jobs: Sequence[Job], asked: Asked) -> Found:
    progress = Progress(len(jobs))
    found: dict[tuple[str, str], list[tuple[int, Trial | str]]] = {}
    for job in jobs:
        try:
            trial = run_job(job, asked, progress)
        except KeyboardInterrupt:
            progress.stopped()
            raise
        found.setdefault((job.base, job.name), []).append((job.seed, trial))
        if job.plain is None and isinstance(trial, Trial):
            _tell(job.base, trial)
    return found


def _tell(base: str, trial: Trial) -> None:
    """What should be known of a model before anything is taught to it: a caution may save the rest of the time."""
    model = BaseModel(base, "causal", knows=said([trial]), knows_in_context=behind_text(trial))
    probe = Comparison("", "", "", "", (0,), Facts(1, ""), (model,), ())
    for caution in cautions(probe):
        print(f"compare: {caution}", file=sys.stderr, flush=True)


def check_plan(
    bases: Mapping[str, Base],
    contestants: Mapping[str, Way],
    seeds: Sequence[int] | None,
    run: Run | None,
    judging: Judging | None,
    title: str = "-",
) -> None:
    """Refuse what can be told to fail before a model is loaded.

    Raises:
        DataError: something is missing, named wrongly or does not go together.
    """
    seeds = [0] if seeds is None else seeds
    if run is not None and run.numbered:
        raise DataError("run.numbered is true: a comparison goes on in its folder, so give each a name by run.name")
    if not bases:
        raise DataError("bases is empty: name at least one model, as in {gpt2: {backbone: {name: gpt2}}}")
    if not any(way.method == "base" for way in contestants.values()):
        raise DataError(
            "contestants: none is the model as it is, beside which the others are judged: add "
            "{as it is: {class_path: kedit.contestants.AsItIs}}"
        )
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        raise DataError(f"seeds are {seeds}: wanted at least one number from 0, none twice")
    for what, names in (("bases", bases), ("contestants", contestants), ("title", [title])):
        for name in names:
            if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > LONGEST:
                raise DataError(
                    f"{what}: {name!r:.80} is no name: wanted one line of 1 to {LONGEST} characters, in quotes"
                )
    for name, way in contestants.items():
        if way.bases is not None and not way.bases:
            raise DataError(f"contestants.{name}.bases is empty: name models, or leave it out for all")
        if unknown := [base for base in way.bases or () if base not in bases]:
            raise DataError(f"contestants.{name}.bases: {unknown[0]!r} is none of bases: {', '.join(bases)}")
        if way.method == "base" and way.bases is not None:
            raise DataError(f"contestants.{name}.bases: the model as it is belongs to every base: leave it out")
    if judging is not None and judging.perplexity is not None:
        existing_file(judging.perplexity, "judging.perplexity")


def _warnings(facts: FactSet, conflicts: EditConflicts, seeds: Sequence[int]) -> list[str]:
    found = []
    asked = {probe.group.split("/")[0] for edit in facts.edits for probe in edit.probes}
    if missing := [aspect for aspect in ASPECTS[1:] if aspect not in asked]:
        found.append(
            f"The facts have no probes of {' or '.join(missing)}: nothing is said of that. A line of an edits' file "
            'takes them as "probes": [{"group": "locality", "prompt": "...", "target": ""}].'
        )
    if undefined := facts.undefined:
        found.append(
            f"{len(undefined):,} of {facts.subjects:,} subjects are not defined, as {undefined[0]!r:.60}: what the "
            "edits say stands for that. A definition's name is to be the edits' subject."
        )
    if conflicts.conflicts:
        found.append(
            f"{sum(map(len, conflicts.conflicts)):,} facts contradict another one: at most "
            f"{share(conflicts.reliability_ceiling)} of all can be said."
        )
    if len(seeds) == 1:
        found.append("One seed: the intervals say nothing of how results differ from run to run.")
    return found


def _config(*parts: object) -> str:
    names = ("bases", "contestants", "facts", "seeds", "judging", "questions")
    given = {name: described(part) for name, part in zip(names, parts, strict=True) if part is not None}
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)


def _plain(contestants: Mapping[str, Way]) -> str:
    """The name of the model as it is."""
    return next(name for name, way in contestants.items() if way.method == "base")


def _base(name: str, bases: Mapping[str, Base], contestants: Mapping[str, Way], found: Found) -> BaseModel:
    ((_, trial),) = found[name, _plain(contestants)]
    if not isinstance(trial, Trial):
        return BaseModel(name, bases[name].architecture)
    return BaseModel(name, trial.architecture, trial.parameters, said([trial]), behind_text(trial))


def _contestants(
    bases: Mapping[str, Base],
    contestants: Mapping[str, Way],
    found: Found,
    unfit: Mapping[tuple[str, str], str],
    facts: int,
) -> list[Contestant]:
    told = []
    for base in bases:
        ((_, trial),) = found[base, _plain(contestants)]
        shown = examples(trial.rows) if isinstance(trial, Trial) else []
        for name, way in contestants.items():
            if reason := unfit.get((base, name)):
                told.append(Contestant(name, base, way.method, "not applicable", reason))
            elif trials := found.get((base, name)):
                told.append(_contestant(name, base, way, trials, facts, shown))
    return told


def _contestant(
    name: str, base: str, way: Way, trials: Sequence[tuple[int, Trial | str]], facts: int, shown: Sequence[str]
) -> Contestant:
    done = [trial for _, trial in trials if isinstance(trial, Trial)]
    if len(done) < len(trials):
        reasons = [f"seed {seed}: {why}" if way.seeded else why for seed, why in trials if isinstance(why, str)]
        return Contestant(name, base, way.method, "failed", "; ".join(dict.fromkeys(reasons)), way.together)
    return contestant(name, base, way, done, facts, shown)
