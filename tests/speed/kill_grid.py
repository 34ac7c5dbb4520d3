"""Runs of each method, killed by SIGKILL at seeded moments and gone on with, against the run that was left alone.

    python tests/speed/kill_grid.py --results kill_grid.jsonl
    python tests/speed/kill_grid.py --methods kilm --processes DDP ZeRO-2 --workers 0 --moments "in save" --kills 1

Every cell must end with the same samples, losses, weights, optimiser moments, random states and curves, in every bit.
Two processes are killed together, or one of them alone, after which the other must end by itself. Results are appended
to a file as they come, and what stands there is not run again: a grid that was stopped goes on by the same command.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from killed_configs import STRATEGIES, distill, kilm, recipe, runs_of
from killed_records import Told
from killed_runs import MOMENTS, Cell

METHODS = ("kilm", "recipe", "distill")


def base_config(method: str, folder: Path) -> str:
    """A method's configuration; what it reads stands in the folder."""
    if method == "recipe":
        return recipe(folder / "base")
    if method == "distill":
        return distill()
    from kedit.kilm.data import MadeCorpus
    from kedit.world import WorldWiki

    os.environ["KEDIT_CACHE"] = str(folder / "cache")
    return kilm(str(MadeCorpus(WorldWiki(200, 0, 3), vocabulary=1024, chunk_tokens=48).make()))


def run_cell(cell: Cell, whole: Told, name: str, moment: str, kills: int, seed: int) -> dict[str, Any]:
    chance = random.Random(zlib.crc32(f"{name}, {moment}, {seed}".encode()))
    start = time.monotonic()
    outcome = cell.killed("-".join(moment.split()), cell.draw(whole, moment, kills, chance), whole)
    return {"runs": outcome.runs, "kills": outcome.kills, "repeated": outcome.repeated, "wrong": outcome.wrong,
            "seconds": round(time.monotonic() - start, 1)}  # fmt: skip


def run_kind(
    key: dict[str, Any], text: str, wanted: list[str], parent: Path, arguments: argparse.Namespace, results: Path
) -> None:
    """The cells of a method, number of processes and of workers: one run left alone, then one for each moment."""
    name = f"{key['method']}, {key['processes']}, {key['workers']} workers"
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        config = runs_of(text, key["processes"], key["workers"])
        cell = Cell(Path(folder), config, 1 if key["processes"] == "1 process" else 2, arguments.limit)
        whole, failed, start = Told(), "", time.monotonic()
        try:
            whole = cell.whole()
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        print(f"{name}: {failed or f'{len(whole.batches)} batches'} in {time.monotonic() - start:.0f} s", flush=True)
        for moment in wanted:
            found: dict[str, Any] = {"runs": 0, "kills": [], "repeated": 0, "wrong": [failed], "seconds": 0}
            if not failed:
                try:
                    found = run_cell(cell, whole, name, moment, arguments.kills, arguments.seed)
                except Exception as error:
                    found["wrong"] = [f"{type(error).__name__}: {error}"]
            with results.open("a") as file:
                file.write(json.dumps(key | {"moment": moment, "seed": arguments.seed} | found) + "\n")
            line = f"  {moment}: {found['runs']} runs, {len(found['kills'])} kills, {found['seconds']} s"
            print("\n    ".join([line, *found["wrong"]]), flush=True)


def table(lines: list[dict[str, Any]]) -> str:
    """Sums over the moments by method, processes and workers, and over all."""
    names = f"{'method':<8} {'processes':<10} {'workers':>7}"
    head = f"{names} {'cells':>6} {'runs':>6} {'kills':>6} {'resumed':>8} {'repeated':>9} {'different':>10}"
    kinds = sorted({(line["method"], line["processes"], line["workers"]) for line in lines})
    rows = [head]
    for kind in [*kinds, ("all", "", "")]:
        of = [
            line for line in lines if kind[0] == "all" or (line["method"], line["processes"], line["workers"]) == kind
        ]
        counts = [len(of), sum(one["runs"] for one in of), sum(len(one["kills"]) for one in of),
                  sum(max(0, one["runs"] - 1) for one in of), sum(one["repeated"] for one in of),
                  sum(bool(one["wrong"]) for one in of)]  # fmt: skip
        widths = (6, 6, 6, 8, 9, 10)
        numbers = " ".join(f"{count:>{width}}" for count, width in zip(counts, widths, strict=True))
        rows.append(f"{kind[0]:<8} {kind[1]:<10} {kind[2]:>7} {numbers}")
    return "\n".join(rows)


def stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)  # so that processes are killed and folders removed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--processes", nargs="+", choices=tuple(STRATEGIES), default=tuple(STRATEGIES))
    parser.add_argument("--workers", nargs="+", type=int, default=(0, 2))
    parser.add_argument("--moments", nargs="+", choices=tuple(MOMENTS), default=tuple(MOMENTS))
    parser.add_argument("--kills", type=int, default=3, help="at most, of a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds of an attempt")
    parser.add_argument("--results", type=Path, default=Path("kill_grid.jsonl"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    if any(value != "1 process" for value in arguments.processes):
        import cpu_deepspeed  # noqa: F401  or every child imports DeepSpeed

    def done() -> list[dict[str, Any]]:
        lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
        read = [json.loads(line) for line in lines if line.endswith("}")]
        return [line for line in read if line["seed"] == arguments.seed]

    with tempfile.TemporaryDirectory(prefix="kill-grid-") as parent:
        for method in arguments.methods:
            text = base_config(method, Path(parent) / method)
            for processes in arguments.processes:
                for workers in arguments.workers:
                    key = {"method": method, "processes": processes, "workers": workers}
                    there = {line["moment"] for line in done() if key.items() <= line.items()}
                    if wanted := [moment for moment in arguments.moments if moment not in there]:
                        run_kind(key, text, wanted, Path(parent), arguments, arguments.results)
    lines = done()
    print(table(lines))
    sys.exit(int(any(line["wrong"] for line in lines)))
