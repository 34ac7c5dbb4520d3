"""The repository of edits under kills, and at a million edits: what is lost, and what it costs beside a plain product.

    python tests/speed/recipe_store.py kills --rounds 100
    python tests/speed/recipe_store.py size --edits 1000000 --dtype float16
    python tests/speed/recipe_store.py search --edits 1000000 --dtype float32

The first kills a writing process at random moments and counts what was acknowledged, lost and torn. The second fills a
repository with made-up keys (3 GB of disk at a million of width 768) and prints a table, the third only searches.
"""

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from kedit.editing.edits import Edit
from kedit.recipe.repository import Repository
from kedit.recipe.search import Index

KILLED_WIDTH = 64


def made(number: int) -> Edit:
    return Edit(f"f{number}", f"The mother tongue of person {number:,} of the registry is", f"language {number % 97}",
                f"person {number:,}", "mother tongue")  # fmt: skip


def made_key(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(KILLED_WIDTH, dtype=np.float32)


# kills


def write(folder: Path, seed: int) -> None:
    """Add edits in batches of random size until killed, and print after each how many there are."""
    chance = random.Random(seed)
    with Repository.open(folder, encoder="made", key_width=KILLED_WIDTH) as repository:
        count = len(repository)
        while True:
            numbers = range(count, count + chance.choice([1, 1, 1, 10, 100]))
            repository.add([made(n) for n in numbers], np.stack([made_key(n) for n in numbers]))
            count = numbers.stop
            os.write(1, f"{count}\n".encode())


def kills(rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    lost = torn = acknowledged = unopenable = 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        for number in range(rounds):
            writer = subprocess.Popen(
                [sys.executable, __file__, "write", home, str(number)], stdout=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert writer.stdout is not None
            heard = writer.stdout.readline()
            time.sleep(chance.uniform(0, 0.6))
            writer.send_signal(signal.SIGKILL)
            lines = [heard, *writer.communicate()[0].splitlines(keepends=True)]
            told = int([line for line in lines if line.endswith(b"\n")][-1])
            try:
                with Repository.open(home, encoder="made", read_only=number % 2 == 0) as repository:
                    count = len(repository)
                    lost += max(0, told - count)
                    torn += len(repository.verify())
                    tail = range(max(0, count - 300), count)  # numbers count from 1, as keys do from 0
                    stands = repository.numbered([n + 1 for n in tail])
                    rows_RD, _ = repository.keys()
                    for n, one in zip(tail, stands, strict=True):
                        torn += (one.edit != made(n)) or not np.array_equal(rows_RD[n], made_key(n))
            except Exception as error:
                unopenable += 1
                print(f"round {number}: {error!r}")
            acknowledged = told
    print(f"kill -9 at random moments: {rounds}   ({time.perf_counter() - began:.0f} s)")
    print(f"edits acknowledged        {acknowledged:,}")
    print(f"acknowledged edits lost   {lost}")
    print(f"torn or damaged           {torn}")
    print(f"could not be opened       {unopenable}")


# size


def key_batches(edits: int, width: int, dtype: str, size: int) -> Iterator[np.ndarray]:
    """Keys of length 1, the same for the same place."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, edits, size):
        keys = torch.randn(min(size, edits - start), width, generator=generator)
        yield torch.nn.functional.normalize(keys, dim=1).numpy().astype(dtype)


def seconds(run: Callable[[], object], clock: Callable[[], float], least: float = 1.0) -> float:
    """The best of a few runs, after one: what else the machine does only ever adds."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < least and len(times) < 50):
        began = clock()
        run()
        times.append(clock() - began)
    return min(times)


def size(edits: int, width: int, dtype: str, device: str) -> None:
    batch = 1000
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        print(f"{edits:,} edits, keys of {width} in {dtype}, {torch.get_num_threads()} threads, device {device}")
        with Repository.open(folder, encoder="made", key_width=width, dtype=dtype) as repository:
            spent = 0.0
            for first, keys in zip(range(0, edits, batch), key_batches(edits, width, dtype, batch), strict=True):
                began = time.perf_counter()
                repository.add([made(n) for n in range(first, first + len(keys))], keys)
                spent += time.perf_counter() - began
            tell("edits/s in batches of 1,000, durable", f"{edits / spent:,.0f}")
            began, singles = time.perf_counter(), 200
            for n in range(edits, edits + singles):
                repository.add([made(n)], keys[:1] + np.random.default_rng(n).standard_normal(width).astype(dtype))
            tell("edits/s one by one, durable", f"{singles / (time.perf_counter() - began):,.0f}")
            tell("flushes/s of this disk alone", f"{flushes(folder):,.0f}")
            repository.forget([f"f{edits + n}" for n in range(singles)])
        stored = sum(path.stat().st_size for path in folder.iterdir())
        database = (folder / "edits.sqlite").stat().st_size
        total = edits + singles
        tell("bytes per edit", f"{stored / total:,.0f}  (key {width * np.dtype(dtype).itemsize:,}, "
             f"text and tables {database / total:,.0f})")  # fmt: skip
        began = time.perf_counter()
        repository = Repository.open(folder, encoder="made", key_width=width, dtype=dtype)
        count = len(repository)
        tell("open, ms", f"{(time.perf_counter() - began) * 1e3:,.1f}  ({count:,} edits)")
        began = time.perf_counter()
        repository.keys()
        tell("which stand, and their keys mapped, ms", f"{(time.perf_counter() - began) * 1e3:,.0f}")
        index = Index(width, device, getattr(torch, dtype))
        began = time.perf_counter()
        for numbers, keys in repository.key_blocks():
            index.add(numbers, keys)
        tell("keys read, checked and in the index, s", f"{time.perf_counter() - began:,.1f}")
        began = time.perf_counter()
        repository.numbered(range(1, 257))
        tell("256 edits by number, ms", f"{(time.perf_counter() - began) * 1e3:,.1f}")
        repository.close()
    tell("memory at most, GB", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}")
    compare(index)


def search(edits: int, width: int, dtype: str, device: str) -> None:
    index = Index(width, device, getattr(torch, dtype))
    for first, keys in zip(range(1, edits + 1, 1 << 14), key_batches(edits, width, dtype, 1 << 14), strict=True):
        index.add(range(first, first + len(keys)), keys)
    print(f"{edits:,} keys of {width} in {dtype}, {torch.get_num_threads()} threads, device {device}")
    compare(index)


def compare(index: Index) -> None:
    """A search beside the product of all keys with the queries and the maximum of each: the limit."""
    edits, width, device = len(index), index.width, index.device
    keys_ND = torch.empty(edits, width, dtype=index.dtype, device=device)
    for start in range(0, edits, 1 << 16):
        stop = min(start + (1 << 16), edits)
        keys_ND[start:stop] = index.keys(range(start + 1, stop + 1)).to(index.dtype)
    near = keys_ND[torch.randint(edits, (256,), generator=torch.Generator().manual_seed(1)).to(device)].float()
    noise = torch.randn(256, width, generator=torch.Generator().manual_seed(2)).to(device) / width**0.5
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter  # then what else the machine does is not counted
    print(f"{'':<44}{'product, ms':>12}{'search, ms':>12}{'ratio':>8}")
    for name, queries in (("near a key", near + 0.5 * noise), ("near none", noise)):
        for count in (1, 256):
            part = queries[:count]

            def plain(part: torch.Tensor = part) -> torch.Tensor:
                best = (keys_ND @ part.to(keys_ND.dtype).T).max(0).values
                return best.cpu()  # waits for the device

            def ours(part: torch.Tensor = part) -> torch.Tensor:
                return index.search(part).scores_BK.cpu()

            base, mine = seconds(plain, clock), seconds(ours, clock)
            label = f"queries {name}, batch of {count}"
            print(f"{label:<44}{base * 1e3:>12,.1f}{mine * 1e3:>12,.1f}{mine / base:>8.2f}")


def flushes(folder: Path, rounds: int = 100) -> float:
    with (folder / "flush").open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(rounds):
            file.write(b"x" * 1536)
            os.fdatasync(file.fileno())
        spent = time.perf_counter() - began
    (folder / "flush").unlink()
    return rounds / spent


def tell(what: str, value: str) -> None:
    print(f"{what:<44}{value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    kill = commands.add_parser("kills")
    kill.add_argument("--rounds", type=int, default=100)
    kill.add_argument("--seed", type=int, default=0)
    writer = commands.add_parser("write")
    writer.add_argument("folder", type=Path)
    writer.add_argument("seed", type=int)
    for name in ("size", "search"):
        large = commands.add_parser(name)
        large.add_argument("--edits", type=int, default=1_000_000)
        large.add_argument("--width", type=int, default=768)
        large.add_argument("--dtype", choices=["float32", "float16"], default="float16")
        large.add_argument("--device", default="cpu")
        large.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.command == "kills":
        kills(options.rounds, options.seed)
    elif options.command == "write":
        write(options.folder, options.seed)
    else:
        torch.set_num_threads(options.threads)
        run = size if options.command == "size" else search
        run(options.edits, options.width, options.dtype, options.device)


if __name__ == "__main__":
    main()
