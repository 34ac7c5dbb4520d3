"""A run's two folders, `checkpoints/<run>/` and `logs/<run>/`: their name, who may write there, and which checkpoint
in them is meant. Knows files, and how Lightning and DeepSpeed lay out a checkpoint.
"""

import pickle
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kedit.editing.sources import DataError
from kedit.running.durable import MANIFEST, interrupted
from kedit.running.manifest import FORMAT, STAMP, file_damage, folder_damage, read_manifest


@dataclass
class Run:
    """Where a run writes.

    Args:
        name: name of the run, and of its folder under `checkpoints` and under `logs`.
        numbered: append the next free number to the name (quickstart-1, quickstart-2, ...); what goes on with a run,
            or judges one, takes the newest.
        checkpoints: folder of all runs' checkpoints.
        logs: folder of all runs' logs.
    """

    name: str = "run"
    numbered: bool = False
    checkpoints: str = "checkpoints"
    logs: str = "logs"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.+=-]*", self.name):
            raise DataError(f"run.name {self.name!r} is no folder name: use letters, digits, '_', '-', '.', '+', '='")


@dataclass(frozen=True)
class RunFolder:
    """One run: its final name and its two folders, which may not exist yet."""

    name: str
    checkpoints: Path
    logs: Path

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has started to train here; one that failed in its preparations has not."""
        return self.held_in is not None

    @property
    def held_in(self) -> Path | None:
        """The one of the two folders that shows that a run has started here."""
        if (self.checkpoints / "config.yaml").exists() or holds_checkpoint(self.checkpoints):
            return self.checkpoints
        return self.logs if (self.logs / "config.yaml").exists() else None


def new_run(run: Run) -> RunFolder:
    """The folders of a run that is about to start. Writes nothing.

    Raises:
        DataError: there is a run of that name.
    """
    if run.numbered:
        return _folder(run, f"{run.name}-{(_numbers(run) or [0])[-1] + 1}")
    folder = _folder(run, run.name)
    if folder.holds_a_run:
        raise DataError(
            f"{folder.held_in} already holds a run, and is left as it is: go on with it by --ckpt_path last, or "
            "give this one another name by --run.name NAME"
        )
    return folder


def existing_run(run: Run) -> RunFolder:
    """The folders of the run to go on with or to judge: of a numbered one the newest. They may be empty."""
    numbered = [_folder(run, f"{run.name}-{number}") for number in _numbers(run)] if run.numbered else []
    started = [folder for folder in numbered if folder.holds_a_run]  # others failed in their preparations
    return (started or numbered or [_folder(run, run.name)])[-1]


def _folder(run: Run, name: str) -> RunFolder:
    return RunFolder(name, Path(run.checkpoints) / name, Path(run.logs) / name)


def _numbers(run: Run) -> list[int]:
    pattern = re.compile(re.escape(run.name) + r"-([1-9]\d*)")
    matches = [
        pattern.fullmatch(path.name)
        for top in (run.checkpoints, run.logs)
        if Path(top).is_dir()
        for path in Path(top).iterdir()
    ]
    return sorted({int(match[1]) for match in matches if match})


def find_checkpoint(folder: RunFolder, wanted: str) -> tuple[Path, list[str]]:
    """The checkpoint that `--ckpt_path` means.

    Args:
        folder: the run.
        wanted: `last` (the newest that is complete, by the file's time), `best` (what that one remembers as the best),
            or a path, also one relative to the run's checkpoints.

    Returns:
        The checkpoint, and a note on each newer one that was skipped because it is incomplete, and on an older one of a
        later step. Such are left when a run goes on from an earlier checkpoint, and then the newest is right; or else
        a file was copied or touched.

    Raises:
        DataError: there is none, the one named is incomplete, it is no local file, or a newer version wrote it.
    """
    if wanted not in ("last", "best"):
        return _named(folder, wanted), []
    skipped = []
    for path in _newest_first(folder.checkpoints):
        damage = incomplete(path)
        if damage:
            skipped.append(f"skipped {path}: {damage}")
            continue
        if later := _later(folder.checkpoints, path):
            skipped.append(later)
        path = (_best(path) or path) if wanted == "best" else path
        _check_format(path)
        return path, skipped
    raise DataError("; ".join([f"no complete checkpoint in {folder.checkpoints}", *skipped]))


def _later(folder: Path, newest: Path) -> str:
    """A note on the checkpoint of the latest step, where it is older than the newest complete one; it is not read."""
    paths = _newest_first(folder)
    steps = {path: step for path in paths[paths.index(newest) :] if (step := _step(path)) is not None}
    latest = max(steps, key=lambda path: steps[path], default=newest)
    if newest not in steps or steps[latest] <= steps[newest]:
        return ""
    return (
        f"{newest} is the newest and of step {steps[newest]}, {latest} is older and of step {steps[latest]}: name that "
        "by --ckpt_path if it is the one to take"
    )


def _step(path: Path) -> int | None:
    """A checkpoint's step, by its name where that says it; None where the file is damaged."""
    if named := re.search(r"(?<![a-z])step=(\d+)", path.name):
        return int(named[1])
    try:
        return step_of(path)
    except (DataError, OSError, ValueError, TypeError, IndexError):
        return None


def _named(folder: RunFolder, wanted: str) -> Path:
    if re.match(r"[a-z][a-z0-9+.-]*:", wanted):
        raise DataError(
            f"--ckpt_path {wanted}: wanted last, best or a local file; a checkpoint is not loaded from afar"
        )
    path = next((path for path in (Path(wanted), folder.checkpoints / wanted) if path.exists()), None)
    if path is None:
        raise DataError(
            f"--ckpt_path {wanted}: no such file, neither here nor in {folder.checkpoints}{_newest_hint(folder)}"
        )
    damage = incomplete(path)
    if damage:
        raise DataError(f"checkpoint {path} is incomplete ({damage}){_newest_hint(folder)}")
    if path.is_file() and "state_dict" not in state_of(path):
        raise DataError(
            f"--ckpt_path {path}: holds no state_dict, so it is no checkpoint of a run{_newest_hint(folder, path)}"
        )
    _check_format(path)
    return path


def _check_format(path: Path) -> None:
    """See that no newer version wrote it; what that means by it is unknown."""
    if path.is_dir():
        given = read_manifest(path).get("format") if (path / MANIFEST).is_file() else None
    else:
        stamp = state_of(path).get(STAMP)
        given = stamp.get("format") if isinstance(stamp, dict) else None
    if isinstance(given, int) and given > FORMAT:
        raise DataError(
            f"checkpoint {path} was written by a newer kedit (format {given}, this one reads up to {FORMAT}): update "
            "kedit, or name an older checkpoint by --ckpt_path"
        )


def _newest_hint(folder: RunFolder, but: Path | None = None) -> str:
    newest = newest_complete(folder.checkpoints, but)
    return f"; the newest complete one is {newest}" if newest else ""


def _newest_first(folder: Path) -> list[Path]:
    found = [*folder.glob("*.ckpt"), *interrupted(folder)]
    return sorted(found, key=lambda path: path.lstat().st_mtime_ns, reverse=True)


def holds_checkpoint(folder: Path) -> bool:
    """Whether there is anything in a folder that calls itself a checkpoint."""
    return any(folder.glob("*.ckpt")) or any(interrupted(folder))


def newest_complete(folder: Path, but: Path | None = None) -> Path | None:
    """The newest checkpoint of a folder that can be loaded, one left out. Reads it whole."""
    paths = (path for path in _newest_first(folder) if but is None or path.name != but.name)
    return next((path for path in paths if not incomplete(path)), None)


def incomplete(checkpoint: Path) -> str:
    """Why a checkpoint cannot be loaded, empty where it can. All of it is read and compared with its checksums."""
    if not checkpoint.exists():
        return "the file it links to is gone"
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.rglob("*") if path.is_file()]
    return _damage(checkpoint, tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _damage(checkpoint: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    """`incomplete`, read once as long as no file changes."""
    if checkpoint.is_file():
        return file_damage(checkpoint)
    if (checkpoint / MANIFEST).exists():
        return folder_damage(checkpoint)
    parts = sorted(checkpoint.glob("checkpoint/*.pt"))
    if not any("model_states" in part.name for part in parts):
        return "no model states in it"
    return next((f"{part.name}: {damage}" for part in parts if (damage := file_damage(part))), "")


def step_of(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint was saved at."""
    if checkpoint.is_dir() and (checkpoint / MANIFEST).is_file():
        return int(read_manifest(checkpoint).get("global_step") or 0)
    return int(state_of(checkpoint).get("global_step", 0))


def state_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds; tensors stay on disk until they are used.

    Raises:
        DataError: it is no checkpoint, or holds more than tensors and plain values.
    """
    import torch

    if checkpoint.is_dir():
        parts = [path for path in sorted(checkpoint.glob("checkpoint/*.pt")) if "model_states" in path.name]
        checkpoint = [*parts, checkpoint / "meta.pt"][0]  # DeepSpeed's, or that of torch's sharded ones
    try:
        state = torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DataError(
            f"checkpoint {checkpoint} is none of a run: it holds objects other than tensors and plain values, which "
            "could run code and are not loaded, or it is damaged; name another by --ckpt_path"
        ) from error
    if not isinstance(state, dict):
        raise DataError(
            f"checkpoint {checkpoint} is none of a run: it holds a {type(state).__name__}; name another by --ckpt_path"
        )
    return state


def _best(checkpoint: Path) -> Path | None:
    """What a checkpoint's ModelCheckpoint holds for the best one, looked for beside it (runs may be moved)."""
    for name, state in state_of(checkpoint).get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint") and state.get("monitor") and state.get("best_model_path"):
            best = checkpoint.parent / Path(state["best_model_path"]).name
            if best.exists() and not incomplete(best):
                return best
    return None
