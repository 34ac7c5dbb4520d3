"""A corpus built on a cluster by datatrove: one part of the dump is one task. Needs the extra `cluster`.

Knows datatrove's executors; what the tasks do stands in articles.py, units.py and build.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from kedit.kilm.articles import parse_part
from kedit.kilm.build import write_units
from kedit.kilm.join import join
from kedit.kilm.plan import Plan
from kedit.kilm.wikitext import Setting

MakeExecutor = Callable[..., PipelineExecutor]


class CorpusStep(PipelineStep):
    """One stage of a build; task number r of n does every n-th part from r on.

    Args:
        stage: "parse", "titles", "units" or "join".
        build: arguments of `Plan`.
    """

    type = "corpus"

    def __init__(self, stage: str, build: dict[str, Any]) -> None:
        super().__init__()
        self.name = stage
        self.stage, self.build = stage, build

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        plan = Plan(**self.build)
        plan.resume()
        parts = plan.parts()
        mine = range(rank, len(parts), world_size)
        with self.track_time():
            if self.stage == "parse":
                for i in mine:
                    if not plan.parsed(i).exists():
                        parse_part(parts[i], plan.parsed(i), self.build["setting"], self._count)
            elif self.stage == "titles":
                plan.titles(len(parts))
            elif self.stage == "units":
                bases = plan.titles(len(parts))
                for i in mine:
                    if not plan.units(i).exists():
                        write_units(plan.output, i, bases[i], self._count)
            elif not (plan.output / "manifest.json").exists():
                join(plan, len(parts))
        yield from ()

    def _count(self, count: int) -> None:
        self.stat_update("progress", value=count)


def corpus_executor(
    make: MakeExecutor,
    dump: list[Path],
    tokenizer: str,
    output: Path,
    setting: Setting = "lead",
    chunk_tokens: int = 448,
    descriptions: Path | None = None,
) -> PipelineExecutor:
    """The last of four executors that depend on each other; `.run()` on it builds the corpus.

    Args:
        make: makes an executor from `pipeline`, `tasks`, `depends` and `logging_dir`:
            `partial(LocalPipelineExecutor, workers=8)` or
            `partial(SlurmPipelineExecutor, time="4:00:00", partition="cpu", cpus_per_task=1)`.
        dump: as in `build_corpus`, and so the others; all paths on a disk that every node sees.
        tokenizer: folder or hub id.
        output: folder of the corpus.
        setting: lead or full.
        chunk_tokens: most tokens in a unit.
        descriptions: table of titles and descriptions.

    Raises:
        DataError: bad input, or another corpus in the folder.
    """
    build: dict[str, Any] = {
        "dump": [Path(path) for path in dump],
        "tokenizer": tokenizer,
        "output": Path(output),
        "setting": setting,
        "chunk_tokens": chunk_tokens,
        "descriptions": descriptions,
    }
    plan = Plan(**build)
    plan.claim()
    parts = len(plan.parts())
    executor: PipelineExecutor | None = None
    for stage, tasks in (("parse", parts), ("titles", 1), ("units", parts), ("join", 1)):
        logs = str(plan.output / "logs" / stage)
        executor = make(pipeline=[CorpusStep(stage, build)], tasks=tasks, depends=executor, logging_dir=logs)
    assert executor is not None
    return executor
