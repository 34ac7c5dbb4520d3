"""Files of tensors that are there whole or not at all and are seen to be damaged, shared by the processes of a run.

Knows neither model nor teacher.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit.editing.sources import DataError
from kedit.running.errors import is_out_of_space, space_message
from kedit.running.files import sync


def raw(tensor: Tensor) -> Any:
    """The bytes of a CPU tensor, not copied where it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_part(path: Path, tensors: dict[str, Tensor], key: str) -> None:
    """Write CPU tensors with a checksum and the key of what they belong to.

    Raises:
        DataError: there is no space for it.
    """
    metadata = {"key": key, "sha256": _checksum(tensors)}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata))


def load_part(path: Path, key: str, checked: bool = False) -> dict[str, Tensor]:
    """Tensors by memory map.

    Args:
        path: what `write_part` wrote.
        key: what it is to belong to.
        checked: whether it is known to be right, so that it need not be read.

    Raises:
        ValueError, SafetensorError: it is damaged or belongs to something else.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not checked and metadata.get("key") != key:
        raise ValueError("belongs to another teacher or place")
    if not checked and metadata.get("sha256") != _checksum(tensors):
        raise ValueError("is damaged, its checksum is another")
    return tensors


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written beside its place, forced to disk and then named.

    Raises:
        DataError: there is no space for it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if not is_out_of_space(error):
            raise
        more = "; what is complete is used again: free some, or set KEDIT_CACHE to another folder"
        raise DataError(space_message(path, more)) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run at a time; the second waits and says so."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: another run is writing here; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def together(work: Callable[[], None] | None) -> None:
    """Do a step in every process, or in some, and wait for all: one that fails fails in all, instead of leaving the
    others waiting.
    """
    failure: Exception | None = None
    try:
        if work is not None:
            work()
    except Exception as error:
        failure = error
    if dist.is_initialized():
        told: list[tuple[bool, str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(told, failure and (isinstance(failure, DataError), str(failure)))
        first = next((one for one in told if one is not None), None)
        if failure is None and first is not None:
            failure = DataError(first[1]) if first[0] else RuntimeError(f"another process failed: {first[1]}")
    if failure is not None:
        raise failure


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(raw(tensor))
    return digest.hexdigest()
