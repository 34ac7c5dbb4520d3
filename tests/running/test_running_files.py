"""Runs, checkpoint files, records, errors and functions as commands: what needs no training."""

import errno
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from kedit.editing.records import read_json_lines
from kedit.editing.sources import DataError
from kedit.running.checkpoints import DurableCheckpointIO
from kedit.running.errors import is_out_of_space, told
from kedit.running.functions import call
from kedit.running.records import flat_hyperparameters, report
from kedit.running.runs import Run, existing_run, find_checkpoint, incomplete, new_run


def test_a_numbered_run_takes_the_number_after_the_highest(tmp_path):
    run = Run("quick", True, str(tmp_path / "checkpoints"), str(tmp_path / "logs"))
    assert new_run(run).name == "quick-1"
    assert existing_run(run).name == "quick"
    (tmp_path / "checkpoints" / "quick-2").mkdir(parents=True)
    (tmp_path / "checkpoints" / "quick-x").mkdir()
    (tmp_path / "logs" / "quick-11").mkdir(parents=True)
    (tmp_path / "logs" / "quicker-20").mkdir()
    assert new_run(run).name == "quick-12"
    assert existing_run(run).name == "quick-11"
    checkpoint(tmp_path / "checkpoints" / "quick-2" / "last.ckpt")
    assert existing_run(run).name == "quick-2"  # the other one never started


def checkpoint(path: Path, best: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    best_so_far = {"monitor": "x", "best_model_path": best}
    state = {"callbacks": {"ModelCheckpoint{'monitor': 'x'}": best_so_far}, "global_step": 3}
    torch.save(state, path)
    return path


def test_deepspeed_folders_are_checkpoints_too(tmp_path):
    run = Run("zero", False, str(tmp_path), str(tmp_path / "logs"))
    whole = tmp_path / "zero" / "step=1.ckpt"
    checkpoint(whole / "checkpoint" / "mp_rank_00_model_states.pt", str(whole))
    broken = tmp_path / "zero" / "step=2.ckpt"
    states = checkpoint(broken / "checkpoint" / "mp_rank_00_model_states.pt")
    (broken / "checkpoint" / "zero_pp_rank_1_optim_states.pt").write_bytes(b"")
    assert incomplete(whole) == ""
    assert incomplete(broken) == "zero_pp_rank_1_optim_states.pt: 0 bytes"
    found, skipped = find_checkpoint(existing_run(run), "best")
    assert found == whole
    assert skipped == [f"skipped {broken}: zero_pp_rank_1_optim_states.pt: 0 bytes"]
    states.unlink()
    assert incomplete(broken) == "no model states in it"


def test_the_best_checkpoint_is_looked_for_where_the_run_lies_now(tmp_path):
    run = Run("moved", False, str(tmp_path), str(tmp_path / "logs"))
    best = checkpoint(tmp_path / "moved" / "step=4.ckpt")
    last = checkpoint(tmp_path / "moved" / "step=9.ckpt", "/elsewhere/step=4.ckpt")
    assert find_checkpoint(existing_run(run), "best")[0] == best
    best.unlink()
    assert find_checkpoint(existing_run(run), "best")[0] == last
    (tmp_path / "moved" / "zzz.ckpt").symlink_to("gone.ckpt")
    assert incomplete(tmp_path / "moved" / "zzz.ckpt") == "the file it links to is gone"
    with pytest.raises(DataError, match="no such file"):
        find_checkpoint(existing_run(run), "gone.ckpt")


def test_an_older_file_of_a_later_step_is_told_of(tmp_path):
    run = existing_run(Run("copied", False, str(tmp_path), str(tmp_path / "logs")))
    later, last = checkpoint(run.checkpoints / "step=9.ckpt"), checkpoint(run.checkpoints / "last.ckpt")  # of step 3
    os.utime(later, ns=(0, last.stat().st_mtime_ns - 10**9))
    found, (note,) = find_checkpoint(run, "last")
    assert found == last
    assert f"{last} is the newest and of step 3, {later} is older and of step 9: name that by --ckpt_path" in note
    os.utime(later)
    assert find_checkpoint(run, "last") == (later, [])


def test_a_checkpoint_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run" / "last.ckpt"
    writer = DurableCheckpointIO()
    writer.save_checkpoint({"step": 1}, str(path))
    monkeypatch.setattr(torch, "save", half_save)
    with pytest.raises(DataError, match=rf"no space for {path}: .* MiB free .*newest complete checkpoint is {path}"):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    assert zipfile.is_zipfile(path)


def half_save(state: object, file) -> None:
    file.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_on_a_full_disk(state: object, file) -> None:
    try:
        raise OSError(errno.EFBIG, "File too large")
    except OSError as error:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0") from error


def test_a_full_disk_is_known_whatever_stands_around_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", torch_on_a_full_disk)
    with pytest.raises(DataError, match=r"no space for .*; there is no complete checkpoint"):
        DurableCheckpointIO().save_checkpoint({}, tmp_path / "run" / "a.ckpt")
    assert is_out_of_space(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_out_of_space(RuntimeError("unexpected position"))
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        DurableCheckpointIO().save_checkpoint({}, tmp_path / "run" / "a.ckpt")


def test_a_report_is_a_table_and_flat_json(tmp_path, capsys):
    path = tmp_path / "logs" / "results.json"
    report({"test/a": torch.tensor(0.5), "test/longer": 2}, {"test/a": "share of right answers"}, path)
    assert json.loads(path.read_text()) == {"test/a": 0.5, "test/longer": 2.0}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["test/a         0.5000  share of right answers", "test/longer    2.0000"]
    report({"test/longer": 2, "test/a": 0.5, "test/b": 1}, {"test/b": "", "test/a": "share"})
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert keys == ["test/b", "test/a", "test/longer"]  # what has a meaning stands first


def test_hyperparameters_are_flat_scalars():
    config = """
seed_everything: 3
model:
  class_path: kedit.kilm.KilmModule
  init_args:
    rate: 0.1
    schedule: {class_path: kedit.lm.Schedule, init_args: {warm: 5}}
    names: [a, b]
    nothing: null
data: {class_path: kedit.kilm.KilmData}
trainer: {max_epochs: 2}
"""
    assert flat_hyperparameters(config) == {
        "seed": 3,
        "model": "kedit.kilm.KilmModule",
        "model.rate": 0.1,
        "model.schedule": "kedit.lm.Schedule",
        "model.schedule.warm": 5,
        "model.names": '["a", "b"]',
        "data": "kedit.kilm.KilmData",
    }


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError("a\n\n  b\nc\nd"), "a\n  b\n  c"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.xml"), "x.xml: no such file or directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the device"),
        (
            OSError("We couldn't connect to 'https://huggingface.co' to load the files. Check your connection."),
            "not a local folder, and the hub cannot be reached or has no such model",
        ),
        (
            OSError("facebook/bart-big is not a local folder and is not a valid model identifier"),
            "facebook/bart-big: not",
        ),
        (OSError("Can't load tokenizer for 'some/where'. If you were trying"), "some/where: not a local folder"),
        (OSError("cable cut"), "cable cut"),
    ],
)
def test_what_a_user_can_mend_is_told_shortly(error, words):
    assert told(error).startswith(words)
    assert len(told(error).splitlines()) <= 3


def test_a_byte_order_mark_in_front_is_not_read(tmp_path):
    path = tmp_path / "mentions.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8-sig")
    assert [record for _, record in read_json_lines(path)] == [{"text": "a"}, {"text": "b"}]


def test_half_a_character_is_named_with_its_line(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"name": "\\ud83d\\ude00 \\\\ud800"}\n{"name": "X\\ud800"}\n')
    with pytest.raises(DataError, match=r"facts\.jsonl:2: half a character \(such as \\ud800\)"):
        list(read_json_lines(path))
    path.write_text(path.read_text().splitlines()[0])
    assert [record for _, record in read_json_lines(path)] == [{"name": "\U0001f600 \\ud800"}]


def test_our_own_errors_are_not_told():
    assert told(ValueError("x")) is None
    assert told(RuntimeError("x")) is None


def build(dump: list[Path], output: Path, setting: str = "lead", rows: int | None = None) -> tuple:
    """Build something.

    Args:
        dump: the files.
        output: the folder.
        setting: how.
        rows: how many.
    """
    return dump, output, setting, rows


def test_a_function_is_a_command(tmp_path, capsys):
    assert call(build, "build", ["--dump", "a", "b", "--output", "o", "--rows", "3"]) == (
        [Path("a"), Path("b")],
        Path("o"),
        "lead",
        3,
    )
    assert call(build, "build", ["--dump", '["a"]', "--output=o"])[0] == [Path("a")]
    config = tmp_path / "c.yaml"
    config.write_text("dump: [x]\noutput: y\nsetting: full\n")
    assert call(build, "build", ["--config", str(config), "--output", "z"]) == ([Path("x")], Path("z"), "full", None)
    for arguments, words in [
        (["--dmp", "a"], "unknown key dmp\n  did you mean dump?"),
        (["--dump", "a", "--output", "o", "--rows", "many"], "rows: wanted int or null, got 'many'"),
        (["--dump", "a"], "missing: output"),
    ]:
        with pytest.raises(SystemExit) as stop:
            call(build, "build", arguments)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
