"""Checkpoint files that are there whole or not at all: written beside their place, forced to disk, read back, renamed.

Lightning writes them in $TMPDIR and moves them: across file systems a kill in between destroys old and new.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from kedit.editing.sources import DataError
from kedit.running.durable import commit, partial_of, remove, require_space, settle, sync_file
from kedit.running.errors import is_out_of_space, space_message
from kedit.running.manifest import file_damage
from kedit.running.runs import newest_complete


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint file durably, and deletes checkpoints, files and folders, so that none is half there."""

    def __init__(self) -> None:
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to the local file `path`; what stood there stays until the new one is complete.

        Raises:
            DataError: there is no space for it, or what is read back is not what was written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        settle(path.parent)
        require_space(path, tensor_bytes(checkpoint), lambda: kept_message(path.parent))
        partial = partial_of(path)
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            sync_file(partial)  # or the page cache would be verified
            damage = file_damage(partial)
            if damage:
                raise DataError(
                    f"{path} could not be written: read back, it is {damage}; is the storage failing?\n"
                    f"{kept_message(path.parent)}"
                )
            commit(partial, path)
        except BaseException as error:
            written = partial.stat().st_size if partial.exists() else 0
            partial.unlink(missing_ok=True)
            if not is_out_of_space(error):
                raise
            more = f", more than {written / 2**20:,.0f} MiB wanted; {kept_message(path.parent)}"
            raise DataError(space_message(path, more)) from error
        self.wrote(path)

    def wrote(self, path: Path) -> None:
        """Take note of a checkpoint that is complete now, so that older ones may go."""
        self._written.add(path.absolute())

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint; but not before this process has written a complete one that is still there."""
        path = Path(path).absolute()
        if any(other != path and other.exists() for other in self._written):
            remove(path)
            self._written.discard(path)


def kept_message(folder: Path) -> str:
    """Which checkpoint stays usable when one could not be written."""
    newest = newest_complete(folder)
    return f"the newest complete checkpoint is {newest}" if newest else "there is no complete checkpoint"


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists, as torch.save writes them: a shared storage once."""
    storages: dict[int, int] = {}
    rest = [state]
    while rest:
        value = rest.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, list | tuple):
            rest.extend(value)
    return sum(storages.values())
