"""Which exceptions are the user's to mend, and what to say of them. Imports nothing heavy."""

import errno
import os
import re
import shutil
from collections.abc import Iterator

from kedit.editing.sources import DataError

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FULL_TEXT = re.compile(r"no space left|os error 28\b|unexpected pos \d|file too large|disk quota exceeded", re.I)
"""What torch and safetensors say, whose exceptions carry no number."""
NEARLY_FULL = 16 * 2**20
"""Bytes free on a disk that is taken for the one that was full, where nothing names it."""
LIGHTNING = {
    "Early stopping conditioned on metric": "trainer.callbacks: ",
    "`val_check_interval` (": "trainer.val_check_interval: ",
}
"""What Lightning says of a configuration by exceptions of other kinds, and which option is meant."""
ONLY_WEIGHTS = (
    "the checkpoint holds weights only (checkpoint.save_weights_only true), and training cannot go on from it: test or "
    "export it, or train anew under another --run.name"
)
HUB = re.compile(r"couldn't connect|can't load|cannot find|not a local folder|offline mode|is not a valid model", re.I)


def told(error: BaseException) -> str | None:
    """What to tell the user in one to three lines; None where the error is ours and a traceback is due."""
    if isinstance(error, DataError):
        return _short(str(error))
    if is_out_of_space(error):
        name = next((e.filename for e in chain(error) if isinstance(e, OSError) and e.filename), None)
        return f"no space left on the device{f' for {name}' if name else ''}"
    if isinstance(error, OSError):
        return _of_the_system(error)
    if type(error).__name__ == "MisconfigurationException":  # Lightning, on arguments that do not fit together
        return _short(str(error))
    if isinstance(error, KeyError) and "checkpoint contains only the model" in str(error):
        return ONLY_WEIGHTS
    if isinstance(error, RuntimeError | ValueError):
        return next((option + _short(str(error)) for text, option in LIGHTNING.items() if text in str(error)), None)
    return None


def is_out_of_space(error: BaseException) -> bool:
    """Whether a full disk, a quota or a limit on file sizes is behind an exception."""
    return any(
        (isinstance(e, OSError) and e.errno in FULL)
        or (not isinstance(e, ValueError | TypeError) and FULL_TEXT.search(str(e)) is not None)
        for e in chain(error)
    )


def space_message(path: str | os.PathLike[str], more: str = "") -> str:
    """What to tell of a file or folder there was no space for.

    Args:
        path: the file, which may not exist.
        more: added to the message.
    """
    free = shutil.disk_usage(_existing(path)).free
    return f"no space for {path}: {free / 2**20:,.0f} MiB free (or a quota or limit on file sizes is reached){more}"


def fullest(*folders: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Of folders on different disks the one that must have been full; the first where none nearly is."""
    free = {folder: shutil.disk_usage(_existing(folder)).free for folder in folders}
    least = min(folders, key=lambda folder: free[folder])
    return least if free[least] < NEARLY_FULL else folders[0]


def _existing(path: str | os.PathLike[str]) -> str:
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those behind it, the last first."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or following.__context__


def _of_the_system(error: OSError) -> str:
    if error.errno is not None and error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
    text = str(error)
    if HUB.search(text):
        name = re.search(
            r"(?:model|tokenizer|feature extractor|processor|file) for '([^']+)'|^(\S+) is not a local", text
        )
        named = f"{name[1] or name[2]}: " if name else ""
        return f"{named}not a local folder, and the hub cannot be reached or has no such model\n  {_short(text, 1)}"
    return _short(text) or type(error).__name__


def _short(text: str, lines: int = 3) -> str:
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n  ".join(line[:400] for line in kept[:lines])
