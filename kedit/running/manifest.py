"""Whether a checkpoint is as it was written: a file by the checksums inside it, a folder by its manifest.

torch's files are zip archives with a checksum a tensor, which torch writes and never looks at. A folder's MANIFEST.json
names every file with size and checksum; it is written last. Knows nothing of what the tensors mean.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kedit.running.durable import MANIFEST, sync_file
from kedit.running.files import sync

CHUNK = 16 * 2**20
FORMAT = 1
"""Of what this version writes, in manifests and in stamps; it reads this and what is older."""
STAMP = "kedit"
"""Under which key a checkpoint says what it is of."""
THREADS = 4
"""Files read side by side: zlib lets go of the interpreter."""
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, NotImplementedError)


def file_damage(path: Path) -> str:
    """What is wrong with a file of torch.save, read whole; empty where nothing is."""
    size = os.path.getsize(path)
    if size == 0:
        return "0 bytes"
    import torch

    name = ""
    try:
        if not zipfile.is_zipfile(path):
            return f"cut off after {size:,} bytes, or no checkpoint"
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename
                with archive.open(entry) as part:
                    while part.read(CHUNK):
                        pass
        name = ""
        torch._C.PyTorchFileReader(str(path))  # the table of contents, which it reads more strictly
    except _BROKEN:
        return f"damaged: {f'{name} in it' if name else 'its table of contents'} is not what was written"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def folder_damage(folder: Path) -> str:
    """What of a folder is not as its manifest says, read whole; empty where all is."""
    try:
        files = read_manifest(folder)["files"]
        expected = {name: (int(file["bytes"]), str(file["crc32"])) for name, file in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, (size, _) in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has {(folder / name).stat().st_size:,} bytes, {size:,} were written"
    stranger = next((name for name in _names(folder) if name.endswith(".pt") and name not in expected), None)
    if stranger is not None:
        return f"{stranger} is not of it"
    found = checksums(folder, expected)
    wrong = next((name for name, (_, checksum) in expected.items() if found[name]["crc32"] != checksum), None)
    return f"{wrong} is damaged: its contents are not what was written" if wrong else ""


def read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest.

    Raises:
        OSError: there is none.
        ValueError: it is no JSON object.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise ValueError(f"{folder / MANIFEST} is no JSON object")
    return manifest


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Size and checksum of files, by their names in the folder."""

    def one(name: str) -> dict[str, int | str]:
        size = value = 0
        with (folder / name).open("rb") as file:
            while chunk := file.read(CHUNK):
                size, value = size + len(chunk), zlib.crc32(chunk, value)
        return {"bytes": size, "crc32": f"{value:08x}"}

    names = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def contents(folder: Path) -> list[str]:
    """The names of a folder's files, as in `checkpoint/a.pt`, but for the manifest."""
    return [name for name in _names(folder) if name != MANIFEST]


def write_manifest(folder: Path, files: Mapping[str, Mapping[str, int | str]], facts: Mapping[str, Any]) -> None:
    """Write the manifest that makes a folder complete, durably.

    Args:
        folder: whose files are written and synced.
        files: of `checksums`.
        facts: what else to record, in JSON's types.
    """
    text = json.dumps({"format": FORMAT, **facts, "files": dict(sorted(files.items()))}, indent=1)
    partial = folder / f".{MANIFEST}"
    partial.write_text(text + "\n", encoding="utf-8")
    sync_file(partial)
    os.replace(partial, folder / MANIFEST)
    sync(folder)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
