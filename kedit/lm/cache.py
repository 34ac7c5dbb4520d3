"""Where things are kept that are made once and used by many runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder that the environment variable KEDIT_CACHE names, else ~/.cache/kedit; it may not exist yet."""
    return Path(os.environ.get("KEDIT_CACHE") or Path.home() / ".cache" / "kedit").expanduser()
