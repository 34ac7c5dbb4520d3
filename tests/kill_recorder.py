"""A callback that writes down what a run trains on, and kills the run at a moment that it is told by the environment.

Events, each at a position (batches of this process trained on since the start): `batch` with its samples and its loss;
`accumulating` and `step`, after a batch in the middle and at the end of an optimiser step; `epoch`, around the end of
an epoch; `validation`, before and after it and before each of its batches; `save`, before each call that writes, syncs,
renames or deletes while a checkpoint is written.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

RECORDS, KILL = "KILL_RECORDS", "KILL_AT"
"""Environment variables: the folder of the records, and a `Kill` as JSON; without the first nothing is done."""


@dataclass
class Kill:
    """At which event of which process SIGKILL comes.

    Args:
        event: its name.
        at: its position.
        n: its number at that position.
        rank: the process that meets it.
        alone: whether only that process dies, not its whole group.
        writes: how much of a file is written before, in calls.
        delay: seconds after the event.
    """

    event: str
    at: int
    n: int = 0
    rank: int = 0
    alone: bool = False
    writes: int = 0
    delay: float = 0.0

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    def now(self) -> None:
        if self.delay:
            threading.Timer(self.delay, self._send).start()
        else:
            self._send()

    def _send(self) -> None:
        if self.alone:
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(os.getpgid(0), signal.SIGKILL)


class Recorder(Callback):
    """Stands before the callbacks of the application, so that it meets a batch's end before anything is saved."""

    def __init__(self) -> None:
        self.folder = os.environ.get(RECORDS)
        self.kill = Kill(**json.loads(os.environ[KILL])) if os.environ.get(KILL) else None
        self._number = (-1, "", 0)
        self._saving = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.folder is None or stage != "fit":
            return
        self.rank = trainer.global_rank
        self._file = (Path(self.folder) / f"rank-{self.rank}.jsonl").open("a")
        self._data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for owner, name in ((trainer, "save_checkpoint"), (trainer.strategy, "remove_checkpoint")):
            self._wrap(owner, name)
        for name in ("fsync", "replace", "rename", "unlink"):
            self._watch(name)
        plain = torch.save

        def save(value: Any, file: Any, *arguments: Any, **options: Any) -> None:
            if not self._saving:
                plain(value, file, *arguments, **options)
                return
            with opened(file) as target:
                counted = _Counted(target, self._met("save", name="torch.save"))
                plain(value, counted, *arguments, **options)
                if counted.kill is not None:
                    counted.kill.now()
                self._write({"writes": counted.calls})

        torch.save = save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is not None:
            every = [every_sample(self._data, epoch) for epoch in range(trainer.max_epochs or 1)]
            self._write({"start": self._data.consumed, "batches": len(trainer.train_dataloader), "all": every})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._data.consumed:
            self._meet("epoch", hook="start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.folder is None:
            return
        at = self._data.consumed + 1
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        line = {"event": "batch", "at": at, "epoch": trainer.current_epoch, "batch": batch_idx}
        self._write(line | {"samples": samples_of(batch), "loss": float(loss).hex()})
        if trainer.fit_loop._should_accumulate():
            self._meet("accumulating", at)
        elif at % len(trainer.train_dataloader):
            self._meet("step", at)
        else:
            self._meet("epoch", at, hook="batch")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meet("epoch", hook="end")

    def on_validation_start(self, *_: Any) -> None:
        self._meet("validation", hook="start")

    def on_validation_batch_start(self, *_: Any) -> None:
        self._meet("validation", hook="batch")

    def on_validation_end(self, *_: Any) -> None:
        self._meet("validation", hook="end")

    def _meet(self, event: str, at: int | None = None, **more: Any) -> None:
        if (kill := self._met(event, at, **more)) is not None:
            kill.now()

    def _met(self, event: str, at: int | None = None, **more: Any) -> Kill | None:
        """Write an event down; how to kill, if this is it."""
        if self.folder is None:
            return None
        at = self._data.consumed if at is None else at
        last_at, last_event, last_n = self._number
        n = last_n + 1 if (last_at, last_event) == (at, event) else 0
        self._number = at, event, n
        self._write({"event": event, "at": at, "n": n} | more)
        kill = self.kill
        met = kill is not None and (kill.event, kill.at, kill.rank) == (event, at, self.rank) and n >= kill.n
        return kill if met else None

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _wrap(self, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._saving = True
            try:
                return plain(*arguments, **options)
            finally:
                self._saving = False

        setattr(owner, name, wrapped)

    def _watch(self, name: str) -> None:
        plain = getattr(os, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            if self._saving:
                self._meet("save", name=name)
            return plain(*arguments, **options)

        setattr(os, name, watched)


class _Counted:
    """A file that counts its writes, and kills after some."""

    def __init__(self, file: Any, kill: Kill | None) -> None:
        self.file, self.kill, self.calls = file, kill, 0

    def write(self, data: Any) -> int:
        if self.kill is not None and self.calls >= self.kill.writes:
            self.file.flush()
            self.kill.now()
        self.calls += 1
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def opened(file: Any) -> Iterator[Any]:
    if hasattr(file, "write"):
        yield file
        return
    with open(file, "wb") as target:
        yield target


def samples_of(batch: Any) -> list[int]:
    """The samples of a batch of any method; none where it stands for a process that has none."""
    weights = getattr(batch, "weights_N", None)
    if getattr(batch, "weight", 1.0) == 0 or (weights is not None and not weights.any()):
        return []
    return [int(sample) for sample in getattr(batch, "documents", None) or getattr(batch, "numbers", [])]


def every_sample(data: LightningDataModule, epoch: int) -> list[int]:
    """What an epoch of a method's data is to hold, each once."""
    if hasattr(data, "plan"):
        facts = [fact for stage in data.plan.stages for fact in stage.facts]
        return sorted(np.concatenate([data.plan.rows_of(fact, epoch) for fact in facts]).tolist())
    if hasattr(data, "pool"):
        return list(range(len(data.pool)))
    rows = data.train.rows  # type: ignore[attr-defined]
    return sorted(int(unit) for row in range(len(rows)) for unit in rows[row])
