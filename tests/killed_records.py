"""What runs wrote down, saved and logged, taken together over the attempts of a run, and compared bit by bit."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kedit.running.shards import plain_values_only

CLOCKED = ("second", "mfu", "memory", "wait", "epoch_time")
"""Curves with such a word in their names are not the same in two runs."""
Record = dict[str, Any]


def read_records(folder: Path, rank: int) -> list[Record]:
    """What a process wrote down in one attempt; the last line may be cut off by the kill."""
    path = folder / f"rank-{rank}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@dataclass
class Told:
    """What the attempts of a run wrote down, taken together.

    batches: by process and position, what was trained on with which loss; `repeated`: how many were met again;
    contradictions: those that were not the same then.
    """

    batches: dict[tuple[int, int], Record] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)
    all: list[list[int]] = field(default_factory=list)
    batches_per_epoch: int = 0
    repeated: int = 0
    contradictions: list[str] = field(default_factory=list)


def together(attempts: Sequence[Path], processes: int) -> Told:
    told = Told()
    for number, folder in enumerate(attempts):
        for rank in range(processes):
            for record in read_records(folder, rank):
                if "all" in record:
                    told.all, told.batches_per_epoch = record["all"], record["batches"]
                elif record.get("event") == "batch":
                    key = rank, record["at"]
                    before = told.batches.get(key)
                    told.repeated += before is not None
                    if before is not None and before != record:
                        told.contradictions.append(f"attempt {number}: process {rank} had {before}, then {record}")
                    told.batches[key] = record
                elif "writes" in record:
                    told.events[-1]["writes"] = record["writes"]
                else:
                    told.events.append(record | {"rank": rank})
    return told


def wrong_samples(told: Told) -> list[str]:
    """Samples that an epoch has not exactly once, over all processes."""
    wrong = []
    for epoch, expected in enumerate(told.all):
        seen = sorted(
            sample
            for (_, at), record in told.batches.items()
            if (at - 1) // told.batches_per_epoch == epoch
            for sample in record["samples"]
        )
        if seen != sorted(expected):
            twice = sorted({sample for sample in seen if seen.count(sample) > 1})
            missing = sorted(set(expected) - set(seen))
            wrong.append(f"epoch {epoch}: samples {twice[:5]} twice, {missing[:5]} missing, {len(seen)} in all")
    return wrong


def same_batches(one: Told, other: Told) -> list[str]:
    """Where two runs trained on other samples, or had another loss, in any bit."""
    places = sorted(one.batches.keys() | other.batches.keys())
    different = [place for place in places if one.batches.get(place) != other.batches.get(place)]
    return [
        f"process {rank}, batch {at}: {one.batches.get((rank, at))}, then {other.batches.get((rank, at))}"
        for rank, at in different[:3]
    ]


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Everything of a checkpoint that a step changes: a file's, or that of a folder's shards by name."""
    wanted = ("state_dict", "module", "optimizer_states", "optimizer_state_dict", "lr_schedulers", "global_step",
              "KilmData", "RecipeData", "DistillData")  # fmt: skip
    if checkpoint.is_dir():
        with plain_values_only(checkpoint):
            read = {str(path.relative_to(checkpoint)): torch.load(path) for path in sorted(checkpoint.rglob("*.pt"))}
    else:
        read = {checkpoint.name: torch.load(checkpoint, weights_only=True)}
    return {name: {key: state[key] for key in wanted if state.get(key) is not None} for name, state in read.items()}


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two nested states are not the same in every bit."""
    if type(one) is not type(other):
        return [f"{name}: {type(one).__name__}, then {type(other).__name__}"]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [f"{name}: other numbers"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name}: {sorted(map(str, one.keys() ^ other.keys()))[:5]} in one of them only"]
        return [text for key in one for text in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{name}: {len(one)} entries, then {len(other)}"]
        return [
            text for k, pair in enumerate(zip(one, other, strict=True)) for text in differences(*pair, f"{name}.{k}")
        ]
    if isinstance(one, (int, float, str, bool, type(None))):
        return [] if one == other or one != one else [f"{name}: {one!r}, then {other!r}"]
    return differences(vars(one), vars(other), name)


def curves(logs: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of what is logged and not of the clock, as TensorBoard shows it."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says what it takes back
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not any(word in name for word in CLOCKED)]
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in names}
