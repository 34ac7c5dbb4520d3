"""What a run's checkpoints survive: a stop within a step, a moved folder, other data; and who may write there."""

import os
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import PER_EPOCH, Data, Model

from kedit.cli import main
from kedit.editing.sources import DataError
from kedit.running.last import LastCheckpoint, StepCheckpoint
from kedit.running.lock import LOCK, only_one
from kedit.running.position import TrainingPosition

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONFIG = """\
run: {name: tiny}
model: {class_path: tiny_command.TinyModule}
data: {class_path: tiny_command.TinyData}
trainer: {accelerator: cpu, max_epochs: 1, enable_model_summary: false, enable_progress_bar: false}
checkpoint: {monitor: val/error, save_last: true}
"""


class Clock(Callback):
    """As Lightning's Timer: says to stop after a batch, wherever that lies in a step."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_train_batch_end(self, trainer, *_) -> None:
        self.left -= 1
        if self.left <= 0:
            trainer.should_stop = True


@pytest.mark.parametrize("batches", [4, 5, 6])
def test_time_that_is_over_within_a_step_stops_at_its_end(tmp_path, batches):
    seed_everything(1, verbose=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        callbacks=[TrainingPosition(), Clock(batches), LastCheckpoint(), StepCheckpoint(tmp_path, save_last=True)],
    )  # fmt: skip
    trainer.fit(Model(), datamodule=Data())
    assert trainer.should_stop
    assert trainer.global_step == 2
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["Data"]["consumed"] == 6 < 3 * PER_EPOCH


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_command")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("tiny.yaml").write_text(CONFIG)
    return tmp_path


def test_a_trial_leaves_nothing_that_a_fit_would_stumble_over(place):
    assert main(["fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true"]) == 0
    assert [path.name for path in Path().rglob("*") if path.is_file()] == ["tiny.yaml"]
    assert main(["fit", "--config", "tiny.yaml"]) == 0


def test_a_run_that_was_moved_keeps_its_best(place, monkeypatch, recwarn):
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    (best,) = Path("checkpoints/tiny").glob("*step=*.ckpt")
    shutil.move(place / "here", place / "there")
    monkeypatch.chdir(place / "there")
    # what validates from here on is worse
    more = ["--trainer.max_epochs", "2", "--model.init_args.learning_rate", "5"]
    state = torch.load("checkpoints/tiny/last.ckpt", weights_only=True)
    for group in state["optimizer_states"][0]["param_groups"]:
        group["lr"] = 5.0
    torch.save(state, "checkpoints/tiny/last.ckpt")
    assert main(["fit", "--config", "tiny.yaml", "--ckpt_path", "last", *more]) == 0
    assert sorted(path.name for path in Path("checkpoints/tiny").glob("*.ckpt")) == sorted([best.name, "last.ckpt"])
    state = torch.load("checkpoints/tiny/last.ckpt", weights_only=True)
    (scores,) = [part for name, part in state["callbacks"].items() if name.startswith("ModelCheckpoint")]
    assert Path(scores["best_model_path"]) == Path(best).resolve()
    assert not [one for one in recwarn if "dirpath has changed" in str(one.message)]


def test_a_run_saves_over_its_last_checkpoint_whatever_it_saves_by(place):
    command = ["fit", "--config", "tiny.yaml", "--ckpt_path", "last"]
    assert main(command) == 0
    assert main([*command, "--trainer.max_epochs", "2", "--checkpoint.every_n_train_steps", "2"]) == 0
    assert [path.name for path in Path("checkpoints/tiny").glob("last*")] == ["last.ckpt"]
    assert torch.load("checkpoints/tiny/last.ckpt", weights_only=True)["global_step"] == 12


def test_another_runs_scores_are_not_taken_over(tmp_path):
    saved = StepCheckpoint(tmp_path / "mine", monitor="x")
    saved.load_state_dict(
        saved.state_dict()
        | {"dirpath": "/other", "best_model_path": "/other/a.ckpt", "best_model_score": 1, "kth_best_model_path": ""}
    )
    assert saved.best_model_score is None
    assert saved.best_model_path == "/other/a.ckpt"


def test_a_further_model_checkpoint_is_refused(place, capsys):
    callback = '[{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]'
    assert main(["fit", "--config", "tiny.yaml", "--trainer.callbacks", callback]) == 2
    error = capsys.readouterr().err
    assert "trainer.callbacks: ModelCheckpoint is not for a run" in error
    assert "`checkpoint`" in error
    assert not Path("checkpoints").exists()


def in_another_process(work) -> int:
    """Its exit code where `work` returns a true value 0, else 1."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_in(run: Path) -> None:
    with only_one(run):
        os.kill(os.getpid(), 9)


def test_one_process_at_a_time_trains_in_a_folder(place, capfd):
    run = Path("checkpoints/tiny")
    command = ["fit", "--config", "tiny.yaml", "--ckpt_path", "last"]
    with only_one(run) as without:
        assert not without
        assert in_another_process(lambda: main(command) == 2) == 0
        assert f"process {os.getpid()} on " in (error := capfd.readouterr().err)
        assert f"trains in {run}: wait until it has ended" in error
        assert "Traceback" not in error
    assert not Path("checkpoints").exists()  # nothing was written
    # killed: nothing stays locked
    assert in_another_process(lambda: killed_in(run)) == -9
    assert (run / LOCK).exists()
    assert main(command) == 0
    assert main([*command, "--trainer.max_epochs", "2"]) == 0


def test_a_folder_without_locks_is_trained_in_all_the_same(place, monkeypatch, capsys):
    import fcntl

    def none(*_) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", none)
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    assert "checkpoints/tiny cannot be locked (Function not implemented)" in capsys.readouterr().out


def test_other_data_of_the_same_number_of_steps_are_noticed():
    class Named(Data):
        trained_on: ClassVar = {"data.file": "a", "data.rows": "46"}

    one, other = Named(), Named()
    other.trained_on = {"data.file": "b", "data.rows": "46", "data.new": "c"}
    saved = one.state_dict()
    one.load_state_dict(saved)
    with pytest.raises(DataError, match=r"other data than are given here: data.file \(a, here b\); resume"):
        other.load_state_dict(saved)
    other.load_state_dict({name: part for name, part in saved.items() if name != "trained_on"})  # of before


def test_lightnings_own_callback_reads_the_state_of_ours(tmp_path):
    assert StepCheckpoint(tmp_path).state_key == ModelCheckpoint(tmp_path).state_key
