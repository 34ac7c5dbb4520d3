"""Checkpoints as a run meets them on the command line: what is refused, what is logged, and kills while saving."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import Data, Model

from kedit.cli import main
from kedit.editing.sources import DataError
from kedit.running.curves import WholeCurves
from kedit.running.position import TrainingPosition
from kedit.running.runs import Run, existing_run, find_checkpoint
from kedit.running.stamp import Stamp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONFIG = """\
run: {name: tiny}
model: {class_path: tiny_command.TinyModule}
data: {class_path: tiny_command.TinyData}
trainer: {accelerator: cpu, max_epochs: 1, enable_model_summary: false, enable_progress_bar: false}
checkpoint: {save_last: true}
"""


def damaged(content: bytes) -> bytes:
    at = content.index(b"FB") + 400  # behind the first record's header
    return content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :]


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "is incomplete (0 bytes)"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is incomplete (cut off after"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is incomplete (cut off after 1,000 bytes"),
    "bit flipped": (lambda path: path.write_bytes(damaged(path.read_bytes())), "is incomplete (damaged: "),
    "text": (lambda path: path.write_text("see the other folder"), "or no checkpoint)"),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "or no checkpoint)"),
    "gone": (lambda path: path.unlink(), "no such file"),
    "a link to nothing": (lambda path: (path.unlink(), path.symlink_to("x")), "no such file"),
    "an empty folder": (lambda path: (path.unlink(), path.mkdir()), "no model states in it"),
    "newer": (lambda path: changed(path, kedit={"format": 99}), "by a newer kedit (format 99, this one reads up to 1)"),
    "no weights": (lambda path: changed(path, state_dict=None), "holds no state_dict"),
    "a list": (lambda path: torch.save([1], path), "holds a list"),
    "an object": (lambda path: torch.save({"state_dict": Path("x")}, path), "objects other than tensors"),
    "other weights": (lambda path: changed(path, state_dict={"w": torch.ones(2)}), "does not fit TinyModule"),
}


def changed(path: Path, **parts: object) -> None:
    state = torch.load(path, weights_only=True) | parts
    torch.save({key: value for key, value in state.items() if value is not None}, path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("KEDIT_ALLOW", "tiny_command")
        Path("tiny.yaml").write_text(CONFIG)
        assert main(["fit", "--config", "tiny.yaml"]) == 0
    return home


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_a_remedy_in_three_lines(tmp_path, monkeypatch, capsys, trained, damage):
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_command")
    other = next(Path("checkpoints/tiny").glob("*step=*.ckpt"))
    do, words = DAMAGES[damage]
    do(Path("checkpoints/tiny/last.ckpt"))
    capsys.readouterr()
    assert main(["fit", "--config", "tiny.yaml", "--ckpt_path", "checkpoints/tiny/last.ckpt"]) == 2
    error = capsys.readouterr().err
    error = error[error.index("python -m kedit") :]
    assert words in error
    assert "last.ckpt" in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 3
    remedies = (f"the newest complete one is {other}", "update kedit", "does not fit", "name another by --ckpt_path")
    assert any(remedy in error for remedy in remedies)


class Tokenizer:
    def __init__(self, *words: str) -> None:
        self.words = words
        self.all_special_ids = [0]

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def test_another_tokenizer_of_the_same_size_is_noticed():
    stamp, trainer = Stamp(), Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    model, saved = Model(), {}
    model.tokenizer = Tokenizer("a", "b")
    stamp.on_save_checkpoint(trainer, model, saved)
    stamp.on_load_checkpoint(trainer, model, saved)
    stamp.on_load_checkpoint(trainer, Model(), saved)  # has none to compare
    stamp.on_load_checkpoint(trainer, model, {})
    model.tokenizer = Tokenizer("b", "a")
    with pytest.raises(DataError, match="trained with another tokenizer"):
        stamp.on_load_checkpoint(trainer, model, saved)


def test_a_folder_of_a_newer_version_is_refused(tmp_path):
    from kedit.running.manifest import checksums, contents, write_manifest

    run = existing_run(Run("r", False, str(tmp_path), str(tmp_path / "logs")))
    folder = run.checkpoints / "last.ckpt"
    folder.mkdir(parents=True)
    (folder / "x").write_text("x")
    write_manifest(folder, checksums(folder, contents(folder)), {"format": 2})
    with pytest.raises(DataError, match=r"newer kedit \(format 2, this one reads up to 1\)"):
        find_checkpoint(run, "last")


class Copied(Callback):
    """Copies the logs as they are on disk when a checkpoint has been written."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.copies: list[tuple[int, Path]] = []

    def on_train_batch_start(self, trainer, *_) -> None:
        saved = trainer.checkpoint_callback._last_global_step_saved
        if saved and (not self.copies or self.copies[-1][0] != saved):
            copy = self.logs.with_name(f"copy-{saved}")
            shutil.copytree(self.logs, copy)
            self.copies.append((saved, copy))


def rows(logs: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(logs)).Reload().Scalars("train/loss")]


def test_what_was_logged_is_on_disk_before_the_checkpoint_behind_it(tmp_path):
    seed_everything(3, verbose=False)
    copied = Copied(tmp_path / "logs")
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)

    class Kept(Callback):  # as a kill behind the renaming would leave it
        def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
            assert rows(tmp_path / "logs") == list(range(trainer.global_step))

    trainer = Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=4, use_distributed_sampler=False,
        logger=TensorBoardLogger(str(tmp_path), name="logs", version="", flush_secs=3600),
        callbacks=[TrainingPosition(), WholeCurves(), Kept(), copied, saved],
    )  # fmt: skip
    trainer.fit(Model(), datamodule=Data())
    assert rows(tmp_path / "logs") == list(range(trainer.global_step))  # and none twice
    assert [step for step, _ in copied.copies] == list(range(3, trainer.global_step, 3))
    for step, copy in copied.copies:
        assert rows(copy) == list(range(step))


def kill_while_saving():
    path = Path(__file__).parents[1] / "speed" / "kill_while_saving.py"
    spec = importlib.util.spec_from_file_location("kill_while_saving", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("way", ["file", "folder", "full", "tmpdir"])
def test_killed_while_saving_the_newest_checkpoint_is_usable(tmp_path, way):
    if way == "tmpdir" and not os.path.isdir("/dev/shm"):
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if way == "tmpdir" else tmp_path) as temporary:
        counts = kill_while_saving().rounds(way, 4, 1, tmp_path, temporary)
    assert counts.kills == 4
    assert counts.unusable == 0
    assert counts.told or counts.full
