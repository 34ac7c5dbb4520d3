"""Whether what kedit itself stored is whole: repositories of edits, and checkpoints with their numbers."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from kedit.editing.problems import BadInput, refuse
from kedit.editing.sources import DataError
from kedit.recipe.repository import Repository
from kedit.recipe.tables import DATABASE
from kedit.running.durable import MANIFEST
from kedit.running.runs import incomplete, state_of

RESTORE = "restore it from a backup or an export"
REENCODE = "the edits themselves are kept: make the keys again by `python -m kedit edits reencode --run RUN`"
OTHER = "take another checkpoint of the run, or train again"


def check_repository(folder: Path) -> int:
    """Go through a repository of edits; returns how many stand.

    Raises:
        DataError: it cannot be opened, or is damaged.
    """
    folder = folder.parent if folder.name == DATABASE else folder
    with Repository.open(folder, create=False, read_only=True) as store:
        for damage in store.verify():
            is_key = "keys" in damage
            what = re.split(": the edits' texts are kept|: restore", damage)[0].removeprefix(f"{folder}/")
            refuse(BadInput(str(folder), what, REENCODE if is_key else RESTORE))
        return len(store)


def check_checkpoint(path: Path) -> int:
    """Read checkpoints against their checksums and look for numbers that are none; returns how many tensors there are.

    Raises:
        DataError: one is incomplete, of another program, or holds NaN or infinity.
    """
    found = _checkpoints(path)
    if not found:
        raise BadInput(str(path), "no checkpoint in this folder", "name a folder of checkpoints/, or a file in one")
    count = 0
    for one in found:
        try:
            for name, tensor in _tensors(one):
                count += 1
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    wrong = int((~tensor.isfinite()).sum())
                    what = f"{name[:80]} holds {wrong:,} numbers that are NaN or infinite"
                    refuse(BadInput(str(one), what, OTHER, name[:80]))
        except DataError as error:
            refuse(error)
    return count


def _checkpoints(path: Path) -> list[Path]:
    if path.is_file() or (path / MANIFEST).is_file() or (path / "checkpoint").is_dir():
        return [path]
    return [*sorted(path.glob("*.ckpt")), *sorted(path.glob("*.safetensors"))]


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  it is no mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise BadInput(str(path), f"damaged or cut off ({error})", "get or export it again") from error
        return
    if damage := incomplete(path):
        raise BadInput(str(path), f"incomplete: {damage}", OTHER)
    state = state_of(path)
    tensors = state.get("state_dict", state.get("module"))
    if not isinstance(tensors, dict):
        raise BadInput(str(path), "holds no state_dict, so it is no checkpoint of a run", OTHER)
    yield from ((str(name), value) for name, value in tensors.items() if isinstance(value, torch.Tensor))
