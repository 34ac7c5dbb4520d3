"""A ZeRO checkpoint folder to one that any number of processes can go on from. Knows DeepSpeed's tool for that; no
method.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kedit.editing.sources import DataError
from kedit.running.durable import commit, partial_of, remove, require_space, size_of, sync_file
from kedit.running.manifest import MANIFEST, checksums, contents, read_manifest, write_manifest
from kedit.running.runs import incomplete

UNIVERSAL = "universal"
"""What a manifest says of a folder that is for any number of processes."""


def convert(checkpoint: Path, output: Path | None = None) -> Path:
    """Make a checkpoint folder that DeepSpeed wrote one for any number of processes, so that `--ckpt_path last` goes on
    from it with another number of devices; also with ZeRO stage 1 instead of 2, or 2 instead of 1.

    A batch size is that of an optimiser step, so the configuration stays as it is. Files need no conversion, nor does
    a folder whose model is only judged.

    Args:
        checkpoint: the folder, in its run's own folder.
        output: the folder to write, in the run's own folder too; NAME-universal.ckpt beside it where not given.

    Returns:
        The new folder.
    """
    start = time.monotonic()
    checkpoint = Path(checkpoint)
    output = Path(output) if output else checkpoint.with_name(f"{checkpoint.stem}-{UNIVERSAL}.ckpt")
    manifest = _convertible(checkpoint)
    if output.suffix != ".ckpt" or output.exists():
        raise DataError(f"--output {output}: wanted the name of a new folder that ends in .ckpt")
    require_space(output, size_of(checkpoint), lambda: f"{checkpoint} is as it was")
    partial = partial_of(output)
    if partial.exists():
        remove(partial)
    try:
        (partial / "checkpoint").mkdir(parents=True)
        _run(checkpoint / "checkpoint", partial / "checkpoint")
        for name in ("latest", "latest_universal"):
            (partial / name).write_text("checkpoint")
        names = contents(partial)
        for name in names:
            sync_file(partial / name)
        facts = {key: value for key, value in manifest.items() if key not in ("files", "format", "world_size")}
        write_manifest(partial, checksums(partial, names), facts | {UNIVERSAL: True})
        commit(partial, output)
    finally:
        if partial.exists():
            remove(partial)
    print(f"{output}: {size_of(output) / 2**20:,.1f} MiB in {time.monotonic() - start:.1f} s", flush=True)
    return output


def _convertible(checkpoint: Path) -> dict[str, Any]:
    if checkpoint.is_file():
        raise DataError(
            f"checkpoint {checkpoint} is a file, which any number of processes can go on from: it needs no conversion"
        )
    if not (checkpoint / MANIFEST).is_file():
        raise DataError(f"--checkpoint {checkpoint} is no checkpoint folder of this program: it has no {MANIFEST}")
    if damage := incomplete(checkpoint):
        raise DataError(f"checkpoint {checkpoint} is incomplete ({damage}): name another")
    manifest = read_manifest(checkpoint)
    if manifest.get(UNIVERSAL):
        raise DataError(f"checkpoint {checkpoint} is for any number of processes already")
    if not manifest.get("stage"):
        raise DataError(
            f"checkpoint {checkpoint} was written by {manifest.get('strategy')}, not by DeepSpeed in a ZeRO stage: "
            "only those need a conversion"
        )
    return manifest


def _run(source: Path, target: Path) -> None:
    command = [sys.executable, "-c", f"import {__name__} as own, sys; own._deepspeeds(*sys.argv[1:])",
               str(source), str(target)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DS_ACCELERATOR": "cpu"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"DeepSpeed's ds_to_universal could not convert {source.parent}:\n  {last}")


def _deepspeeds(source: str, target: str) -> None:
    """What `python -m deepspeed.checkpoint.ds_to_universal` does, but that nothing pickled in the shards is run."""
    from deepspeed.checkpoint import ds_to_universal

    from kedit.running.shards import plain_values_only

    sys.argv[1:] = ["--inject_missing_state", "--input_folder", source, "--output_folder", target]
    with plain_values_only(Path(source)):
        ds_to_universal.main(ds_to_universal.parse_arguments())
