"""Checkpoints that are folders (DeepSpeed, FSDP, ModelParallel), complete or ignored: written under a hidden name by
all processes, read back, listed in a manifest, then renamed. Knows Lightning's strategies, not what they write.

As they come, DeepSpeed overwrites `last.ckpt/` in place, and calls a checkpoint the latest before all have written it.
"""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    Strategy,
)
from lightning.pytorch.trainer.states import TrainerFn

from kedit.editing.sources import DataError
from kedit.running.checkpoints import DurableCheckpointIO, kept_message
from kedit.running.convert import UNIVERSAL
from kedit.running.durable import (
    MANIFEST,
    commit,
    partial_of,
    require_space,
    settle,
    size_of,
    sync_file,
)
from kedit.running.errors import is_out_of_space, space_message
from kedit.running.files import sync
from kedit.running.manifest import checksums, contents, file_damage, read_manifest, write_manifest
from kedit.running.runs import incomplete, state_of
from kedit.running.shards import plain_values_only
from kedit.running.zero import SameGradients, load_weights, mend_universal

FIRST_BYTES = 16
"""Bytes a weight takes in a first checkpoint, at most: the weight, its float32 copy, two moments."""


def make_durable(strategy: Strategy) -> None:
    """Make a strategy write its checkpoints, files and folders, whole or not at all.

    Raises:
        DataError: its checkpoints are written while training goes on, so that old ones go before new ones are there.
    """
    plugin = strategy.checkpoint_io
    if isinstance(plugin, AsyncCheckpointIO):
        raise DataError(
            "trainer.plugins: AsyncCheckpointIO deletes the last checkpoint before the next is complete, and tells of "
            "a failure too late: leave it out"
        )
    if type(plugin) is TorchCheckpointIO:
        strategy.checkpoint_io = DurableCheckpointIO()
    if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        # of any class that a configuration names, so that none has to ask
        kind = type(strategy)
        first = (_CommittedFolders, SameGradients) if isinstance(strategy, DeepSpeedStrategy) else (_CommittedFolders,)
        strategy.__class__ = type(kind.__name__, (*first, kind), {"__module__": kind.__module__})


def layout(strategy: Strategy) -> dict[str, Any]:
    """What must be the same to go on from a folder: the strategy, and its stage where it is DeepSpeed."""
    config = strategy.config if isinstance(strategy, DeepSpeedStrategy) else None
    stage = (config or {}).get("zero_optimization", {}).get("stage", 0) if isinstance(config, dict) else None
    return {"strategy": type(strategy).__name__, "stage": stage}


class _CommittedFolders(ParallelStrategy):
    """In front of a strategy, whose own saving it calls with another path."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if not self._writes_folders:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        partial = partial_of(path)
        step = checkpoint.get("global_step")
        self._together(lambda: self._prepare(path), first_only=True)
        try:
            super().save_checkpoint(checkpoint, partial)
        except BaseException as error:
            if not is_out_of_space(error):
                raise
            raise DataError(space_message(path, f"; {kept_message(path.parent)}")) from error
        self.barrier("written")
        # of a folder on a network each machine may see its own files first
        seen = self._together(lambda: self._sync(partial))
        names = sorted(set().union(*seen))[self.global_rank :: self.world_size]
        files = self._together(lambda: self._read_back(path, partial, names))
        facts = {
            "global_step": step,
            "world_size": self.world_size,
            **layout(self),
            "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
        }
        self._together(lambda: self._commit(partial, path, files, facts), first_only=True)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(checkpoint_path)
        if not path.is_dir():
            return super().load_checkpoint(path, weights_only)
        manifest = self._check(path)
        if not isinstance(self, DeepSpeedStrategy):
            return super().load_checkpoint(path, weights_only)
        if self.zero_stage_3 and not _is_fitting(self):
            module = self.lightning_module
            assert module is not None
            with plain_values_only(path):
                load_weights(module, path)
            return state_of(path)
        settings = self.deepspeed_engine._config
        # to be judged, a model needs its weights alone, which DeepSpeed would leave as they are
        settings.load_universal_checkpoint = bool(manifest.get(UNIVERSAL)) and _is_fitting(self)
        try:
            with plain_values_only(path):
                loaded = super().load_checkpoint(path, weights_only)
                if settings.load_universal_checkpoint:
                    mend_universal(self.deepspeed_engine, path)
            return loaded
        finally:
            settings.load_universal_checkpoint = False

    @property
    def _writes_folders(self) -> bool:
        if isinstance(self, FSDPStrategy):
            return self._state_dict_type == "sharded"
        return getattr(self, "_save_distributed_checkpoint", True)

    def _prepare(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        settle(path.parent)
        others = [other for other in path.parent.glob("*.ckpt") if other.is_dir() and not other.is_symlink()]
        last = max(others, key=lambda other: other.stat().st_mtime_ns, default=None)
        size = FIRST_BYTES * self._weights() if last is None else size_of(last)
        require_space(path, size, lambda: kept_message(path.parent))
        partial_of(path).mkdir()
        sync(path.parent)

    def _weights(self) -> int:
        module = self.lightning_module
        assert module is not None
        return sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in module.parameters())

    def _sync(self, partial: Path) -> list[str]:
        """Force to disk what this machine has written; the files it sees."""
        if not partial.is_dir():
            raise DataError(
                f"{partial.parent} is not the same folder on all machines: checkpoints of {type(self).__name__} need "
                "--run.checkpoints on a file system that all share"
            )
        names = contents(partial)
        for name in names if self.local_rank == 0 else ():
            sync_file(partial / name)
        return names

    def _read_back(self, path: Path, partial: Path, names: list[str]) -> dict[str, dict[str, int | str]]:
        """The checksums of this process' share of the files, once they are seen to hold what was written."""
        for name in names:
            if name.endswith(".pt") and (damage := file_damage(partial / name)):
                raise DataError(f"{path} could not be written: read back, {name} is {damage}; is the storage failing?")
        return checksums(partial, names)

    def _commit(self, partial: Path, path: Path, shares: list[Any], facts: dict[str, Any]) -> None:
        for part in {entry for entry in partial.rglob("*") if entry.is_dir()} | {partial}:
            sync(part)
        write_manifest(partial, {name: file for share in shares for name, file in share.items()}, facts)
        commit(partial, path)
        if isinstance(self.checkpoint_io, DurableCheckpointIO):
            self.checkpoint_io.wrote(path)

    def _check(self, path: Path) -> dict[str, Any]:
        """Of folders only what this run wrote is read, for they hold pickles, and to read one can run code.

        Returns:
            The manifest.

        Raises:
            DataError: it is another run's, has no manifest or is not as that says, or was laid out otherwise.
        """
        module = self.lightning_module
        assert module is not None
        own = getattr(module.trainer.checkpoint_callback, "dirpath", None)
        if own is not None and path.resolve().parent != Path(own).resolve():
            raise DataError(
                f"checkpoint {path} is of another run: what {type(self).__name__} wrote is read from the run's own "
                f"folder only ({own}), for to read it can run code\n"
                "go on with that run by --run.name, or start from its weights: python -m kedit export"
            )
        if not (path / MANIFEST).is_file():
            raise DataError(
                f"checkpoint {path} has no {MANIFEST}, so it was not written by this program, or not completely; "
                "to read it could run code: it is not loaded\nname another by --ckpt_path, or export it"
            )
        if damage := incomplete(path):
            raise DataError(f"checkpoint {path} is incomplete ({damage}): name another by --ckpt_path")
        manifest = read_manifest(path)
        _same_layout(path, manifest, self)
        return manifest

    def _together(self, do: Any, first_only: bool = False) -> Any:
        """Do something on all processes, or on the first; when it fails on one it fails on all.

        Returns:
            What each process gave, by rank.
        """
        result = failure = None
        if not first_only or self.is_global_zero:
            try:
                result = do()
            except (OSError, DataError) as error:
                failure = error
        results: list[Any] = [(result, failure and str(failure))]
        if self.world_size > 1:
            results = [None] * self.world_size
            torch.distributed.all_gather_object(results, (result, failure and str(failure)))
        if failure is not None:
            raise failure
        if told := next((message for _, message in results if message), None):
            raise DataError(told)
        return [result for result, _ in results]


def _is_fitting(strategy: ParallelStrategy) -> bool:
    module = strategy.lightning_module
    return module is None or module.trainer.state.fn == TrainerFn.FITTING


def _same_layout(path: Path, manifest: dict[str, Any], strategy: ParallelStrategy) -> None:
    """See that DeepSpeed can take up a folder's shards, to judge its weights alone; the others deal them out anew."""
    if not isinstance(strategy, DeepSpeedStrategy):
        return
    then, now, is_fitting = manifest.get("world_size"), strategy.world_size, _is_fitting(strategy)
    stage_then, stage_now = manifest.get("stage") or 0, layout(strategy)["stage"] or 0
    if (stage_then < 3) != (stage_now < 3):
        raise DataError(
            f"checkpoint {path} was written in ZeRO stage {stage_then}, this run is in stage {stage_now}: stages 1 and "
            f"2 cannot go on from stage 3, nor 3 from them; keep the stage, or start from the weights alone\n"
            f"  python -m kedit export --checkpoint {path} --output FOLDER"
        )
    if is_fitting and not manifest.get(UNIVERSAL) and (then != now or stage_then != stage_now):
        raise DataError(
            f"checkpoint {path} was written by {then} processes in ZeRO stage {stage_then}, this run has {now} in "
            f"stage {stage_now}: make it one for both, and go on by --ckpt_path last\n"
            f"  python -m kedit convert --checkpoint {path}"
        )
    if not is_fitting and manifest.get(UNIVERSAL) and stage_now == 3:
        raise DataError(
            f"checkpoint {path} is made to train on from: to judge it in ZeRO stage 3, name the one that it was made of"
        )
