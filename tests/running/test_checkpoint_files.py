"""Checkpoint files: complete or ignored, whatever is done to them."""

import errno
import random
import shutil
from pathlib import Path

import pytest
import torch

from kedit.editing.sources import DataError
from kedit.running import checkpoints, durable
from kedit.running.checkpoints import DurableCheckpointIO, tensor_bytes
from kedit.running.durable import commit, interrupted, remove, settle
from kedit.running.manifest import checksums, contents, file_damage, write_manifest
from kedit.running.runs import Run, existing_run, find_checkpoint, holds_checkpoint, incomplete, newest_complete


def state(step: int = 1, numbers: int = 500) -> dict:
    weights = torch.arange(numbers, dtype=torch.float32) + step
    return {"global_step": step, "state_dict": {"w": weights, "b": torch.ones(3)}, "callbacks": {}}


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "a.ckpt"
    DurableCheckpointIO().save_checkpoint(state(), path)
    whole = path.read_bytes()
    chance = random.Random(0)
    noticed = 0
    for at in chance.sample(range(len(whole)), 400):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        if file_damage(path):
            noticed += 1
            continue
        read = torch.load(path, weights_only=True)
        assert torch.equal(read["state_dict"]["w"], state()["state_dict"]["w"]), at
    assert noticed > 200  # others stand between tensors
    for size in chance.sample(range(len(whole)), 60):
        path.write_bytes(whole[:size])
        assert file_damage(path), size


def test_last_is_the_newest_that_reads_back_as_written(tmp_path):
    run = existing_run(Run("r", False, str(tmp_path), str(tmp_path / "logs")))
    writer = DurableCheckpointIO()
    for step in (1, 2):
        writer.save_checkpoint(state(step), run.checkpoints / f"step={step}.ckpt")
    damaged = run.checkpoints / "step=2.ckpt"
    contents = bytearray(damaged.read_bytes())
    contents[contents.index(state(2)["state_dict"]["w"].numpy().tobytes()) + 40] ^= 4
    damaged.write_bytes(contents)
    found, skipped = find_checkpoint(run, "last")
    assert found.name == "step=1.ckpt"
    assert skipped == [f"skipped {damaged}: damaged: archive/data/0 in it is not what was written"]
    with pytest.raises(DataError, match=r"step=2.ckpt is incomplete \(damaged.*newest complete one is .*step=1.ckpt"):
        find_checkpoint(run, "step=2.ckpt")


def test_what_a_killed_run_left_goes_at_the_next_save(tmp_path):
    for name in (".last.ckpt.partial", ".step=4.ckpt.partial"):
        (tmp_path / name).write_bytes(b"half")
    for name in (".old.ckpt.removed", ".step=2.ckpt.partial"):
        (tmp_path / name).mkdir()
    DurableCheckpointIO().save_checkpoint(state(), tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_without_room_nothing_is_written(tmp_path, monkeypatch):
    writer = DurableCheckpointIO()
    writer.save_checkpoint(state(1), tmp_path / "step=1.ckpt")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5 * 2**20))
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("written"))
    with pytest.raises(DataError) as told:
        writer.save_checkpoint(state(2, 2**22), tmp_path / "step=2.ckpt")
    first, second = str(told.value).splitlines()
    assert "step=2.ckpt: 19 MiB needed (1.2 times its size), 5 MiB free; nothing was written" in first
    assert first.endswith("step=1.ckpt")
    assert "save_top_k" in second
    assert [path.name for path in tmp_path.iterdir()] == ["step=1.ckpt"]


def test_the_size_of_a_state_counts_shared_storages_once():
    weights = torch.zeros(1000)
    assert tensor_bytes({"a": [weights, weights[:10]], "b": ({"c": torch.zeros(5, dtype=torch.int64)}, 1)}) == 4040


def test_what_reads_back_otherwise_than_written_gets_no_name(tmp_path, monkeypatch):
    def failing_disk(path: Path) -> None:
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)

    writer = DurableCheckpointIO()
    writer.save_checkpoint(state(1), tmp_path / "last.ckpt")
    monkeypatch.setattr(checkpoints, "sync_file", failing_disk)
    with pytest.raises(DataError, match=r"last.ckpt could not be written: read back, it is damaged"):
        writer.save_checkpoint(state(2), tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_nothing_is_deleted_before_something_newer_is_there(tmp_path):
    DurableCheckpointIO().save_checkpoint(state(1), tmp_path / "step=1.ckpt")
    writer = DurableCheckpointIO()  # of a run that goes on from it
    writer.remove_checkpoint(tmp_path / "step=1.ckpt")
    assert (tmp_path / "step=1.ckpt").exists()
    writer.save_checkpoint(state(2), tmp_path / "step=2.ckpt")
    writer.remove_checkpoint(tmp_path / "step=2.ckpt")
    writer.remove_checkpoint(tmp_path / "step=1.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["step=2.ckpt"]


# folders


def folder(path: Path, step: int) -> Path:
    (path / "checkpoint").mkdir(parents=True)
    torch.save(state(step), path / "checkpoint" / "mp_rank_00_model_states.pt")
    (path / "latest").write_text("checkpoint")
    write_manifest(path, checksums(path, contents(path)), {"global_step": step})
    return path


class Killed(BaseException):
    pass


@pytest.mark.parametrize("old", ["folder", "file", "link", "nothing"])
def test_wherever_a_kill_hits_a_commit_one_of_the_two_is_found(tmp_path, monkeypatch, old):
    """A kill before and behind every call that changes the disk, then what a next run finds and what it saves."""
    points = 0
    for point in range(20):
        home = tmp_path / str(point)
        home.mkdir()
        path = home / "last.ckpt"
        if old == "folder":
            folder(path, 1)
        elif old == "file":
            torch.save(state(1), path)
        elif old == "link":
            torch.save(state(1), home / "step=1.ckpt")
            path.symlink_to("step=1.ckpt")
        partial = folder(durable.partial_of(path), 2)
        done = [0]

        def counted(call, done=done, point=point):
            def counting(*arguments):
                if done[0] == point:
                    raise Killed
                done[0] += 1
                return call(*arguments)

            return counting

        with monkeypatch.context() as patch:
            patch.setattr(durable.os, "rename", counted(durable.os.rename))
            patch.setattr(durable.os, "replace", counted(durable.os.replace))
            patch.setattr(durable, "sync", counted(durable.sync))
            patch.setattr(durable.shutil, "rmtree", counted(durable.shutil.rmtree))
            try:
                commit(partial, path)
            except Killed:
                points += 1
        found = newest_complete(home)
        assert found is not None or old == "nothing"
        assert holds_checkpoint(home) or old == "nothing"
        settle(home)
        hidden = [path.name for path in home.iterdir() if path.name.startswith(".")]
        assert not hidden
        if old != "nothing" or point > 0:
            assert not incomplete(path)
        if done[0] < point:
            break
    assert points >= (4 if old == "folder" else 2)


def test_a_complete_folder_whose_name_is_taken_is_no_candidate(tmp_path):
    folder(tmp_path / "last.ckpt", 1)
    folder(tmp_path / ".last.ckpt.partial", 2)
    assert list(interrupted(tmp_path)) == []
    assert newest_complete(tmp_path) == tmp_path / "last.ckpt"
    remove(tmp_path / "last.ckpt")
    assert newest_complete(tmp_path) == tmp_path / ".last.ckpt.partial"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "bit flipped": (lambda path: flip(path / "checkpoint/mp_rank_00_model_states.pt"), "states.pt is damaged"),
    "truncated": (
        lambda path: (path / "checkpoint/mp_rank_00_model_states.pt").write_bytes(b"PK"), "has 2 bytes, "
    ),
    "empty": (lambda path: (path / "latest").write_bytes(b""), "latest has 0 bytes, 10 were written"),
    "missing shard": (lambda path: (path / "checkpoint/mp_rank_00_model_states.pt").unlink(), "states.pt is missing"),
    "strange shard": (lambda path: (path / "checkpoint/x.pt").write_bytes(b"x"), "checkpoint/x.pt is not of it"),
    "empty manifest": (lambda path: (path / "MANIFEST.json").write_bytes(b""), "MANIFEST.json is damaged"),
    "another manifest": (lambda path: (path / "MANIFEST.json").write_text("[]"), "MANIFEST.json is damaged"),
    "manifest without files": (lambda path: (path / "MANIFEST.json").write_text("{}"), "MANIFEST.json is damaged"),
    "files of another kind": (
        lambda path: (path / "MANIFEST.json").write_text('{"files": {"latest": 3}}'), "MANIFEST.json is damaged"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_skipped_and_said_why(tmp_path, damage):
    run = existing_run(Run("r", False, str(tmp_path), str(tmp_path / "logs")))
    folder(run.checkpoints / "step=1.ckpt", 1)
    newer = folder(run.checkpoints / "step=2.ckpt", 2)
    do, words = DAMAGES[damage]
    do(newer)
    found, (note,) = find_checkpoint(run, "last")
    assert found.name == "step=1.ckpt"
    assert note.startswith(f"skipped {newer}: ")
    assert words in note


def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    torch.save(state(), path)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("zipfile.ZipFile.open", broken)
    assert file_damage(path) == "cannot be read: Input/output error"
