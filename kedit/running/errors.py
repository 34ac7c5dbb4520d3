"""Which exceptions are the user's to mend, and what to say of them. Imports nothing heavy."""

import errno
import re

from kedit.editing.sources import DataError

HUB = re.compile(r"couldn't connect|can't load|cannot find|not a local folder|offline mode|is not a valid model", re.I)


def told(error: BaseException) -> str | None:
    """What to tell the user in one to three lines; None where the error is ours and a traceback is due."""
    if isinstance(error, DataError):
        return _short(str(error))
    if isinstance(error, OSError):
        return _of_the_system(error)
    if type(error).__name__ == "MisconfigurationException":  # Lightning, on arguments that do not fit together
        return _short(str(error))
    return None


def _of_the_system(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"no space left on the device{f' for {error.filename}' if error.filename else ''}"
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
