"""Checkpoints of several processes, which are folders: complete or ignored, and taken up exactly."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from tiny_training import StopAt
from two_processes import fit, in_processes, sharded, zero

from kedit.editing.sources import DataError
from kedit.running.convert import convert
from kedit.running.directories import _same_layout, make_durable
from kedit.running.manifest import checksums, contents, write_manifest
from kedit.running.runs import Run, existing_run, find_checkpoint, incomplete, step_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def train(folder: Path, made, *callbacks, resume: Path | None = None, world: int = 2, **saving) -> list:
    """What each process saw, and how it ended."""
    folder.mkdir(exist_ok=True)

    def work(rank: int) -> None:
        model = fit(folder, made(), *callbacks, resume=resume, **saving)
        torch.save([model.seen, "" if model.ended is None else str(model.ended)], folder / f"report-{rank}")

    assert in_processes(work, world) == [0] * world
    return [torch.load(folder / f"report-{rank}", weights_only=True) for rank in range(world)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("report"))


KINDS = {"fsdp2": (sharded, "checkpoint"), "zero-2": (lambda: zero(2), "mp_rank"), "zero-3": (lambda: zero(3), "x")}


@pytest.mark.parametrize("kind", ["fsdp2", pytest.param("zero-2", marks=pytest.mark.slow),
                                  pytest.param("zero-3", marks=pytest.mark.slow)])  # fmt: skip
def test_a_folder_is_committed_with_its_manifest_and_goes_on_exactly(tmp_path, kind):
    made = KINDS[kind][0]
    whole = train(tmp_path / "whole", made)
    assert [ended for _, ended in whole] == ["", ""]
    assert names(tmp_path / "whole") == ["last.ckpt", "step=24.ckpt"]
    parts = tmp_path / "parts"
    first = train(parts, made, StopAt(9))
    assert names(parts) == ["last.ckpt", "step=8.ckpt"]
    run = existing_run(Run("parts", False, str(tmp_path), str(tmp_path / "logs")))
    (last, skipped) = find_checkpoint(run, "last")
    assert (last.name, skipped, step_of(last)) == ("last.ckpt", [], 8)
    manifest = json.loads((last / "MANIFEST.json").read_text())
    assert manifest["world_size"] == 2
    assert manifest["stage"] == {"fsdp2": None, "zero-2": 2, "zero-3": 3}[kind]
    assert sorted(manifest["files"]) == contents(last)
    assert find_checkpoint(run, "best")[0].name == "last.ckpt"  # nothing is monitored

    shard = max((last / name for name in contents(last)), key=lambda path: path.stat().st_size)
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shard.write_bytes(flipped)
    found, (note,) = find_checkpoint(run, "last")
    assert found.name == "step=8.ckpt"
    assert note.endswith(f"{shard.relative_to(last)} is damaged: its contents are not what was written")

    rest = train(parts, made, resume=found)
    for rank in (0, 1):
        assert rest[rank][1] == ""
        assert first[rank][0][:8] + rest[rank][0] == whole[rank][0]


@pytest.mark.slow
def test_deepspeed_takes_up_only_what_this_run_wrote_as_it_wrote_it(tmp_path):
    """Its pickles are not read before all that is known."""
    train(tmp_path / "one", lambda: zero(2), StopAt(4))
    last = tmp_path / "one" / "last.ckpt"

    def ended(resume: Path, stage: int = 2, world: int = 2, folder: str = "one") -> str:
        return train(tmp_path / folder, lambda: zero(stage), StopAt(5), resume=resume, world=world)[0][1]

    assert "is of another run" in ended(last, folder="two")
    assert "written by 2 processes in ZeRO stage 2, this run has 1 in stage 2" in ended(last, world=1)
    assert "this run has 2 in stage 1" in ended(last, stage=1)
    assert "stages 1 and 2 cannot go on from stage 3" in ended(last, stage=3)
    (last / "MANIFEST.json").rename(tmp_path / "kept")
    assert "has no MANIFEST.json" in ended(last)
    (tmp_path / "kept").rename(last / "MANIFEST.json")
    assert ended(last) == ""
    (last / "checkpoint" / "extra.pt").write_bytes(b"")
    assert "checkpoint/extra.pt is not of it" in ended(last)


def steps(processes) -> list[list[int]]:
    """The rows of each step, of all processes."""
    seen = [[rows for rows, _ in diary] for diary, _ in processes]
    return [sorted(row for rows in step for row in rows) for step in zip(*seen, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("wrote", "goes_on"), [((2, 2), (1, 2)), ((1, 2), (2, 1)), ((2, 3), (1, 3))])
def test_a_converted_folder_goes_on_with_other_processes(tmp_path, capsys, wrote, goes_on):
    (world, stage), (world_now, stage_now) = wrote, goes_on
    whole = train(tmp_path / "whole", lambda: zero(stage), world=world)
    train(tmp_path / "parts", lambda: zero(stage), StopAt(8), world=world)
    converted = convert(tmp_path / "parts" / "last.ckpt")
    assert "last-universal.ckpt: " in capsys.readouterr().out
    assert not incomplete(converted)
    assert step_of(converted) == 8
    run = existing_run(Run("parts", False, str(tmp_path), str(tmp_path / "logs")))
    assert find_checkpoint(run, "last") == (converted, [])
    rest = train(tmp_path / "parts", lambda: zero(stage_now), resume=converted, world=world_now)
    assert [ended for _, ended in rest] == [""] * world_now
    # the samples of each step; losses and weights are compared in test_deepspeed.py, where they are means over samples
    assert steps(rest) == steps(whole)[8:]
    with pytest.raises(DataError, match="for any number of processes already"):
        convert(converted)


def test_what_needs_no_conversion_or_allows_none_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "last.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    with pytest.raises(DataError, match=r"it has no MANIFEST\.json"):
        convert(folder)
    (folder / "checkpoint" / "a.pt").write_bytes(b"no shard")
    for facts, words in (({"strategy": "ModelParallelStrategy", "stage": None}, "by ModelParallelStrategy, not by"),
                         ({"strategy": "DeepSpeedStrategy", "stage": 2}, "could not convert")):  # fmt: skip
        write_manifest(folder, checksums(folder, contents(folder)), facts)
        with pytest.raises(DataError, match=words):
            convert(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    with pytest.raises(DataError, match=r"new folder that ends in \.ckpt"):
        convert(folder, tmp_path / "elsewhere")
    (folder / "checkpoint" / "a.pt").write_bytes(b"")
    with pytest.raises(DataError, match="is incomplete"):
        convert(folder)
    (tmp_path / "file.ckpt").write_bytes(b"")
    with pytest.raises(DataError, match="needs no conversion"):
        convert(tmp_path / "file.ckpt")


def test_a_converted_folder_is_committed_beside_the_old_one(tmp_path, monkeypatch, capsys):
    def made(source: Path, target: Path) -> None:
        assert (source / "a.pt").read_bytes() == b"shard"
        (target / "zero").mkdir()
        (target / "zero" / "w.pt").write_bytes(b"whole")

    monkeypatch.setattr("kedit.running.convert._run", made)
    folder = tmp_path / "last.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "a.pt").write_bytes(b"shard")
    write_manifest(folder, checksums(folder, contents(folder)), {"stage": 2, "global_step": 7, "world_size": 2})
    (tmp_path / ".last-universal.ckpt.partial").mkdir()  # of a conversion that was killed
    found = convert(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-universal.ckpt", "last.ckpt"]
    assert contents(found) == ["checkpoint/zero/w.pt", "latest", "latest_universal"]
    assert (step_of(found), incomplete(found)) == (7, "")
    assert "last-universal.ckpt: 0.0 MiB" in capsys.readouterr().out


class Alone(ModelParallelStrategy):
    """Writes a folder in this process, with no trainer around it."""

    world_size, global_rank, local_rank, is_global_zero = 1, 0, 0, True

    def __init__(self, own: Path, content: bytes = b"") -> None:
        super().__init__()
        self.content = content
        saved = SimpleNamespace(dirpath=str(own))
        self._lightning_module = SimpleNamespace(
            parameters=lambda: [torch.zeros(9)], trainer=SimpleNamespace(checkpoint_callback=saved)
        )
        make_durable(self)

    def barrier(self, name=None) -> None:
        pass

    def broadcast(self, obj, src=0):
        return obj

    def save_checkpoint(self, checkpoint, filepath, storage_options=None) -> None:
        (filepath / "checkpoint").mkdir()
        if self.content:
            (filepath / "checkpoint" / "a.pt").write_bytes(self.content)
        else:
            torch.save(checkpoint, filepath / "checkpoint" / "a.pt")
        if self.content == b"full":
            raise OSError(errno.ENOSPC, "No space left on device")

    def load_checkpoint(self, checkpoint_path, weights_only=None):
        return {"read": checkpoint_path}


def test_one_process_writes_and_reads_a_folder(tmp_path):
    own, path = tmp_path / "run", tmp_path / "run" / "last.ckpt"
    strategy = Alone(own)
    for step in (1, 2):
        strategy.save_checkpoint({"global_step": step}, str(path))
        assert step_of(path) == step
        assert names(own) == ["last.ckpt"]
    assert strategy.load_checkpoint(path) == {"read": path}
    assert strategy.load_checkpoint(tmp_path / "file") == {"read": tmp_path / "file"}

    with pytest.raises(DataError, match=r"a\.pt is cut off after 7 bytes, or no checkpoint; is the storage failing"):
        Alone(own, b"garbage").save_checkpoint({}, path)
    with pytest.raises(DataError, match=r"no space for .*; the newest complete checkpoint is .*last.ckpt"):
        Alone(own, b"full").save_checkpoint({}, path)
    assert step_of(path) == 2
    with pytest.raises(DataError, match="is of another run"):
        Alone(tmp_path / "other").load_checkpoint(path)
    shard = path / "checkpoint" / "a.pt"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"is incomplete .*a\.pt has"):
        strategy.load_checkpoint(path)
    (path / "MANIFEST.json").unlink()
    with pytest.raises(DataError, match=r"has no MANIFEST\.json"):
        strategy.load_checkpoint(path)
    with pytest.raises(DataError, match="is not the same folder on all machines"):
        strategy._sync(tmp_path / "elsewhere" / ".last.ckpt.partial")


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ({"world_size": 2, "stage": 2}, "2 processes in ZeRO stage 2, this run has 1 in stage 1.*\n.* kedit convert"),
        ({"world_size": 1, "stage": 2}, "1 processes in ZeRO stage 2, this run has 1 in stage 1"),
        ({"world_size": 1, "stage": 3}, "cannot go on from stage 3"),
        ({"universal": True, "stage": 3}, "cannot go on from stage 3"),
        ({"universal": True, "stage": 2}, ""),
        ({"world_size": 1, "stage": 1}, ""),
    ],
)
def test_deepspeed_goes_on_in_the_layout_that_was_written(then, words):
    class Zero(DeepSpeedStrategy):
        def __init__(self) -> None:
            self.config = {"zero_optimization": {"stage": 1}}

        world_size, lightning_module = 1, None

    if not words:
        _same_layout(Path("x.ckpt"), then, Zero())
        return
    with pytest.raises(DataError, match=words):
        _same_layout(Path("x.ckpt"), then, Zero())


class FullDisk(Callback):
    """Lets the second checkpoint fail on rank 1 alone, behind what all write together."""

    def on_train_start(self, trainer, pl_module) -> None:
        strategy = trainer.strategy
        if trainer.global_rank == 1:
            read_back, calls = strategy._read_back, []

            def failing(*arguments):
                calls.append(1)
                if len(calls) == 3:
                    raise OSError(errno.ENOSPC, "No space left on device", "shard")
                return read_back(*arguments)

            strategy._read_back = failing


def test_what_fails_on_one_process_ends_all_and_leaves_the_checkpoint_before(tmp_path):
    reports = train(tmp_path / "run", sharded, FullDisk())
    assert [("No space left" in ended) for _, ended in reports] == [True, True]
    run = existing_run(Run("run", False, str(tmp_path), str(tmp_path / "logs")))
    last, skipped = find_checkpoint(run, "last")
    assert (step_of(last), skipped) == (4, [])


def test_without_room_for_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 1000, 500))
    reports = train(tmp_path / "run", sharded)
    assert all("0 MiB needed (1.2 times its size), 0 MiB free; nothing was written" in ended for _, ended in reports)
    assert names(tmp_path / "run") == []


def test_asynchronous_saving_is_refused(tmp_path):
    trainer = Trainer(accelerator="cpu", plugins=[AsyncCheckpointIO()], logger=False, enable_checkpointing=False)
    with pytest.raises(DataError, match="AsyncCheckpointIO deletes the last checkpoint before"):
        make_durable(trainer.strategy)


def test_a_strategy_told_to_write_one_file_still_does(tmp_path):
    def made():
        model, _ = sharded()
        return model, ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            process_group_backend="gloo",
            save_distributed_checkpoint=False,
        )

    train(tmp_path / "run", made, StopAt(4))
    assert (tmp_path / "run" / "last.ckpt").is_file()
    assert not incomplete(tmp_path / "run" / "last.ckpt")
