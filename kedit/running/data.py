"""A datamodule whose training resumes exactly: at the next batch, with the same random numbers.

Lightning restarts a plain loader at its first batch, loses a batch to prefetching and keeps no random state. Here the
position is one integer in the datamodule's own state, counted when a batch has been trained on, and a batch is a pure
function of that integer. Knows nothing of any method.
"""

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, Sampler

from kedit.editing.sources import DataError
from kedit.running.order import Share
from kedit.running.workers import adopt, dead_worker, deaf, forking, lost_worker, watched


class ResumableData(LightningDataModule):
    """A datamodule that implements `step_samples`, `steps_per_epoch` and `make_batch`; the loader follows from these.

    Training goes by optimiser steps, whose samples are the same for any number of processes and of accumulated batches;
    `share` says which of them a batch of this process holds.

    Needs the `TrainingPosition` callback in the trainer (the command line installs it). `num_workers` and
    `pin_memory` are read when the loader is built.
    """

    num_workers: int = 0
    pin_memory: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.consumed = 0
        self.waited = 0.0  # seconds that training has waited for its batches
        self._random: dict[str, Any] | None = None
        self._steps_then: int | None = None

    @property
    def seed(self) -> int:
        """The one seed of the run, as `seed_everything` has set it; 0 before."""
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def processes(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def accumulated(self) -> int:
        """Batches of this process that make an optimiser step."""
        batches = 1 if self.trainer is None else int(self.trainer.accumulate_grad_batches)
        if batches < 1:
            raise DataError(f"trainer.accumulate_grad_batches is {batches}, wanted 1 or more")
        return batches

    @property
    def step_samples(self) -> int:
        """Samples of an optimiser step, over all processes and accumulated batches."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many samples a step has")

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch: the same in every epoch, for any number of processes."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many steps an epoch has")

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of this process in an epoch: the same in every epoch and on every process.

        As many as there are, or as `trainer.limit_train_batches` says: then each epoch is the beginning of its order.
        """
        whole = self.steps_per_epoch * self.accumulated
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(whole, limit) if isinstance(limit, int) else int(whole * limit)

    @property
    def trained_on(self) -> dict[str, str]:
        """What the training batches are made of, by names for the user: kept in checkpoints, and compared by a run that
        goes on from one. Cheap, for it is asked at every checkpoint.
        """
        return {}

    def share(self, batch: int) -> Share:
        """Which part of which step batch number `batch` of an epoch is, on this process."""
        return Share(*divmod(batch, self.accumulated), self.accumulated, *self.processes)

    def make_batch(self, epoch: int, batch: int) -> Any:
        """Training batch number `batch` (from 0) of an epoch, for this process: a pure function of its arguments.

        Runs in a worker process where there are workers, so it must not draw from the global random state.
        """
        raise NotImplementedError(f"{type(self).__name__} does not make training batches")

    def train_dataloader(self) -> "BatchLoader":
        return BatchLoader(self, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def state_dict(self) -> dict[str, Any]:
        """What training needs to go on; loads with `weights_only=True`. Called on every process, for it gathers.

        `consumed`: batches trained on since the start, alike on all processes; `random`: one random state per process;
        `seed`, `accumulated`, `steps` (an epoch's) and `trained_on` say what `consumed` means.
        """
        own = _to_save(self._random if self._random is not None else random_state())
        states: list[Any] = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, own)
        steps = self.batches_per_epoch // self.accumulated
        position = {"consumed": self.consumed, "accumulated": self.accumulated, "steps": steps}
        return position | {"random": states, "seed": self.seed, "trained_on": self.trained_on}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position up, for training, with any number of processes and accumulated batches.

        Raises:
            DataError: the checkpoint was trained with another seed, so that its held-out data are others; or on other
                data; or it was written in the middle of a step.
        """
        if state_dict.get("seed", self.seed) != self.seed:
            raise DataError(
                f"the checkpoint was trained with seed_everything {state_dict['seed']}, this command has {self.seed}: "
                "what it held out, it would not hold out here; give the run's own configuration or seed"
            )
        if self.trainer is not None and self.trainer.state.fn not in (None, TrainerFn.FITTING):
            return  # testing a checkpoint is no resume
        then, now = state_dict.get("trained_on", {}), self.trained_on
        others = [name for name in now if then.get(name, now[name]) != now[name]]
        if others:
            raise DataError(
                "the checkpoint was trained on other data than are given here: "
                + ", ".join(f"{name} ({then[name]}, here {now[name]})" for name in others)
                + "; resume with the same, or begin a run of another --run.name"
            )
        consumed, accumulated = int(state_dict["consumed"]), int(state_dict.get("accumulated", self.accumulated))
        if consumed % accumulated and accumulated != self.accumulated:
            raise DataError(
                f"the checkpoint was written after {consumed % accumulated} of {accumulated} accumulated batches: "
                f"resume with trainer.accumulate_grad_batches {accumulated}"
            )
        self.consumed = consumed * self.accumulated // accumulated
        self._steps_then = state_dict.get("steps")
        states = state_dict["random"]
        self._random = _from_saved(states[self.processes[0] % len(states)])


def random_state() -> dict[str, Any]:
    """The state of Python's, numpy's, torch's and this process's CUDA generator, each in its own form."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since `random_state` gave this."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _to_save(state: dict[str, Any]) -> dict[str, Any]:
    """The same in types that `torch.load(weights_only=True)` reads."""
    version, words, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    return state | {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
    }


def _from_saved(state: dict[str, Any]) -> dict[str, Any]:
    version, words, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    return {
        "python": (version, tuple(words.tolist()), gauss),
        "numpy": (name, keys.cpu().numpy().astype(np.uint32), *rest),
        "torch": state["torch"].cpu(),
        "cuda": None if state["cuda"] is None else state["cuda"].cpu(),
    }


class BatchLoader:
    """The rest of the current epoch, batch by batch, from where the datamodule stands at the first `next`.

    No DataLoader for Lightning to see: it would give it a sampler of its own, and start its workers before the
    checkpoint is read. Workers and what they have prefetched are kept over epochs.

    Args:
        data: says where training stands, how long an epoch is, and makes the batches.
        num_workers: processes that make batches; 0 makes them in this one.
        pin_memory: hand out tensors in pinned memory (batches need a `pin_memory` method or be plain collections).
    """

    def __init__(self, data: ResumableData, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.data = data
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._batches: Iterator[Any] | None = None
        self._workers: Sequence[BaseProcess] = ()
        self._next = -1

    def __len__(self) -> int:
        """Batches of a whole epoch: Lightning applies its own limit."""
        return self.data.steps_per_epoch * self.data.accumulated

    def __iter__(self) -> Iterator[Any]:
        # a generator: nothing below runs before the first `next`
        if self._batches is None or self._next != self.data.consumed:
            self._next = self.data.consumed
            with forking():
                self._batches = iter(self._loader(self._next))
        self._workers = adopt(self._batches)
        per_epoch = self.data.batches_per_epoch
        for _ in range(per_epoch - self._next % per_epoch):
            epoch, number = divmod(self._next, per_epoch)
            start = time.perf_counter()
            try:
                with watched(self._workers):
                    batch = next(self._batches)
            except (RuntimeError, OSError, EOFError) as error:
                if not (lost := lost_worker(error) or dead_worker(self._workers)):
                    raise
                raise DataError(f"batch {number} of epoch {epoch} was not made: {lost}") from error
            self.data.waited += time.perf_counter() - start
            if isinstance(batch, _Failed):
                raise DataError(f"batch {number} of epoch {epoch} cannot be made: {batch.reason}")
            self._next += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing, for the datamodule keeps the position; having the method tells Lightning that we resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""

    def _loader(self, position: int) -> DataLoader:
        return DataLoader(
            _Batches(self.data),
            batch_size=None,
            sampler=_Positions(position, self.data.batches_per_epoch),
            num_workers=self.num_workers,
            collate_fn=_as_is,
            pin_memory=self.pin_memory,
            worker_init_fn=deaf,
            # its own, for a DataLoader draws its workers' seed from the global generator otherwise
            generator=torch.Generator(),
            # a datamodule that holds a trainer cannot be pickled
            multiprocessing_context="fork" if self.num_workers and sys.platform == "linux" else None,
        )


class _Positions(Sampler[tuple[int, int]]):
    """(epoch, batch) from a position on, without end."""

    def __init__(self, position: int, per_epoch: int) -> None:
        self.position = position
        self.per_epoch = per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.position
        while True:
            yield divmod(position, self.per_epoch)
            position += 1


class _Batches(Dataset[Any]):
    def __init__(self, data: ResumableData) -> None:
        self.data = data

    def __getitem__(self, key: tuple[int, int]) -> Any:
        try:
            return self.data.make_batch(*key)
        except (DataError, OSError) as error:
            return _Failed(str(error))  # an exception would come out of a worker wrapped in its traceback
        except Exception as error:
            error.add_note(f"in making batch {key[1]} of epoch {key[0]}")
            raise


class _Failed(NamedTuple):
    """Stands for a batch whose data are missing or damaged."""

    reason: str


def _as_is(batch: Any) -> Any:
    return batch
