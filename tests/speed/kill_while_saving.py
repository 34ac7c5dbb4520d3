"""Kills at random moments of saving: is there a usable newest checkpoint after each?

    python tests/speed/kill_while_saving.py --rounds 60

A child saves states of some MB in a loop through the classes that a run uses, with ModelCheckpoint's names and order,
or every other time with last.ckpt alone, is killed by SIGKILL, and the next one goes on from what `--ckpt_path last`
finds. After every kill that must be no older than what the child had told to be saved, and hold what was saved. So
many rounds each: a file; a folder of two processes (either or both are killed); a file with $TMPDIR on another file
system; a file on a disk that fills up. `--ways lightning` is Lightning's own writing, $TMPDIR elsewhere, to compare.
"""

import argparse
import os
import random
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy

from kedit.editing.sources import DataError
from kedit.running.checkpoints import DurableCheckpointIO
from kedit.running.directories import make_durable
from kedit.running.runs import Run, existing_run, find_checkpoint, step_of

NUMBERS = 2**20
"""Of float32 in a state."""
Save = Callable[[int, Path], None]


def state(step: int, part: int = 0) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"w": torch.full((NUMBERS,), float(step + part))}, "callbacks": {}}


class Shards(ModelParallelStrategy):
    """Writes a folder as DeepSpeed does, each process a shard, with no trainer around it."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__(process_group_backend="gloo")
        self.rank, self.world = rank, world
        self._lightning_module = SimpleNamespace(parameters=lambda: [torch.zeros(NUMBERS)])

    world_size = property(lambda self: self.world)
    global_rank = local_rank = property(lambda self: self.rank)
    is_global_zero = property(lambda self: self.rank == 0)

    def barrier(self, name: str | None = None) -> None:
        torch.distributed.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        (Path(filepath) / "checkpoint").mkdir(exist_ok=True)
        kind = "mp_rank_00_model_states" if self.rank == 0 else f"zero_pp_rank_{self.rank}_optim_states"
        torch.save(state(checkpoint["global_step"], self.rank), Path(filepath) / "checkpoint" / f"{kind}.pt")
        torch.distributed.barrier()


def save_for_ever(folder: Path, save: Save, remove: Callable[[Path], None], told: int, last_alone: bool) -> None:
    """What ModelCheckpoint does with save_top_k 1 and save_last, over and over; each step is told when it is safe."""
    found = newest(folder)
    step = 0 if found is None else step_of(found)
    kept = next((path for path in folder.glob("step=*.ckpt")), None)
    while True:
        step += 1
        path = folder / f"step={step}.ckpt"
        try:
            if not last_alone:
                save(step, path)
                os.write(told, f"{step}\n".encode())
            if kept is not None:
                remove(kept)
            kept = None if last_alone else path
            save(step, folder / "last.ckpt")
            os.write(told, f"{step}\n".encode())
        except DataError as error:
            if "no space" not in str(error):
                raise
            os.write(told, b"full\n")


def newest(folder: Path) -> Path | None:
    run = existing_run(Run(folder.name, False, str(folder.parent), str(folder.parent / "logs")))
    try:
        return find_checkpoint(run, "last")[0]
    except DataError:
        return None


def one_file(folder: Path, told: int, chance: random.Random, plugin: TorchCheckpointIO | None = None) -> None:
    plugin = plugin or DurableCheckpointIO()
    save_for_ever(
        folder, lambda step, path: plugin.save_checkpoint(state(step), path), plugin.remove_checkpoint, told,
        chance.random() < 0.5,
    )  # fmt: skip


def on_a_full_disk(folder: Path, told: int, chance: random.Random) -> None:
    """Files may grow to a random part of what is wanted from a random save on."""
    plugin, saves = DurableCheckpointIO(), 0
    full_at, limit = chance.randrange(1, 6), chance.randrange(4 * NUMBERS)

    def save(step: int, path: Path) -> None:
        nonlocal saves
        saves += 1
        if saves == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        plugin.save_checkpoint(state(step), path)

    save_for_ever(folder, save, plugin.remove_checkpoint, told, chance.random() < 0.5)


def as_lightning_does(folder: Path, told: int, chance: random.Random) -> None:
    one_file(folder, told, chance, TorchCheckpointIO())


def two_processes(rank: int, port: int) -> Callable[[Path, int, random.Random], None]:
    def work(folder: Path, told: int, chance: random.Random) -> None:
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        strategy = Shards(rank, 2)
        make_durable(strategy)

        def remove(path: Path) -> None:
            if rank == 0:
                strategy.checkpoint_io.remove_checkpoint(path)
            strategy.barrier()

        found = newest(folder)  # before either writes
        torch.distributed.barrier()
        del found
        save_for_ever(
            folder, lambda step, path: strategy.save_checkpoint({"global_step": step}, path), remove,
            told if rank == 0 else os.open(os.devnull, os.O_WRONLY), chance.random() < 0.5,
        )  # fmt: skip

    return work


@dataclass
class Counts:
    """Of one way's rounds: kills, those in the middle of a save, checkpoints told, disks told to be full, losses."""

    kills: int = 0
    within: int = 0
    told: int = 0
    full: int = 0
    unusable: int = 0


def start(
    work: Callable[[Path, int, random.Random], None], folder: Path, told: int, seed: int, temporary: str | None = None
) -> int:
    child = os.fork()
    if child:
        return child
    try:
        tempfile.tempdir = temporary or tempfile.tempdir
        if os.environ.get("KILL_SHOWS_ERRORS") is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a process whose peer was killed complains
        work(folder, told, random.Random(seed))
    finally:
        os._exit(1)


def rounds(way: str, count: int, seed: int, home: Path, temporary: str | None = None) -> Counts:
    """Kill `count` times; every kill's aftermath is what the next round begins with."""
    chance = random.Random(seed)
    folder = home / way
    folder.mkdir()
    counts = Counts()
    for number in range(count):
        before = newest(folder)
        safe = 0 if before is None else step_of(before)
        reader, writer = os.pipe()
        if way == "folder":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            children = [start(two_processes(rank, port), folder, writer, number) for rank in (0, 1)]
        else:
            work = {"file": one_file, "tmpdir": one_file, "full": on_a_full_disk,
                    "lightning": as_lightning_does}[way]  # fmt: skip
            children = [start(work, folder, writer, number, temporary)]
        os.close(writer)
        heard = os.read(reader, 4096)
        time.sleep(chance.uniform(0, 0.25))
        order = chance.sample(children, len(children))
        os.kill(order[0], signal.SIGKILL)
        time.sleep(chance.choice([0, 0.02]) if order[1:] else 0)
        for child in order[1:]:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        while more := os.read(reader, 65536):
            heard += more
        os.close(reader)
        lines = heard.decode().split("\n")[:-1]
        steps = [int(line) for line in lines if line != "full"]
        counts.kills += 1
        counts.told += len(steps)
        counts.full += len(lines) - len(steps)
        counts.within += any(folder.glob(".*"))
        counts.unusable += not usable(folder, max([safe, *steps]))
    return counts


def usable(folder: Path, least: int) -> bool:
    """Whether the newest checkpoint is at least of a step and holds what was saved of its step."""
    found = newest(folder)
    if found is None:
        return least == 0
    step = step_of(found)
    parts = [found] if found.is_file() else sorted(found.glob("checkpoint/*.pt"))
    held = [torch.load(part, weights_only=True, mmap=True)["state_dict"]["w"] for part in parts]
    right = all(bool((w == step + part).all()) for part, w in enumerate(held))
    return step >= least and right and len(parts) == (1 if found.is_file() else 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="kills of each way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", default=["file", "folder", "tmpdir", "full"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| way | kills | within a save | checkpoints told | times full | no usable newest | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for way in arguments.ways:
        other = os.stat("/dev/shm").st_dev if os.path.isdir("/dev/shm") else os.stat(".").st_dev
        if way in ("tmpdir", "lightning") and other == os.stat(".").st_dev:
            print(f"| {way} | skipped: /dev/shm is no other file system |")
            continue
        began = time.monotonic()
        elsewhere = "/dev/shm" if way in ("tmpdir", "lightning") else "."
        # the children's $TMPDIR is made here, for a child that is killed leaves what it has made
        with tempfile.TemporaryDirectory(dir=".") as home, tempfile.TemporaryDirectory(dir=elsewhere) as temporary:
            counts = rounds(way, arguments.rounds, arguments.seed, Path(home), temporary)
        seconds = time.monotonic() - began
        print(f"| {way} | {counts.kills} | {counts.within} | {counts.told} | {counts.full} | {counts.unusable} | "
              f"{seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
