"""Checkpoint files that are there whole or not at all: written beside their place, forced to disk, then renamed.

Lightning writes them in $TMPDIR and moves them: across file systems a kill in between destroys old and new.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from kedit.editing.sources import DataError
from kedit.running.errors import is_out_of_space, space_message
from kedit.running.runs import newest_complete


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint file durably. Directories (DeepSpeed, FSDP) are written by their strategies."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to the local file `path`; what stood there stays until the new one is complete.

        Raises:
            DataError: there is no space for it.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException as error:
            written = partial.stat().st_size if partial.exists() else 0
            partial.unlink(missing_ok=True)
            if not is_out_of_space(error):
                raise
            newest = newest_complete(path.parent)
            kept = f"the newest complete checkpoint is {newest}" if newest else "there is no complete checkpoint"
            raise DataError(space_message(path, f", more than {written / 2**20:,.0f} MiB wanted; {kept}")) from error
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name
        finally:
            os.close(folder)
