"""Progress and throughput, on a tiny training."""

import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from tiny_training import PER_EPOCH, Data, Model

from kedit.running import pace
from kedit.running.pace import Pace, track
from kedit.running.position import TrainingPosition
from kedit.running.progress import PlainProgress, progress_bar
from kedit.running.throughput import GradientNorm, TrainingThroughput

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class KeptRows(CSVLogger):
    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append({**metrics, "step": step})


def trainer(tmp_path, *callbacks, **arguments) -> Trainer:
    seed_everything(1, verbose=False)
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": True}
    return Trainer(
        accelerator="cpu",
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=4,
        callbacks=[TrainingPosition(), *callbacks],
        **(defaults | arguments),
    )


def test_without_a_terminal_progress_is_plain_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pace, "EVERY", 0.0)
    run = trainer(tmp_path, PlainProgress())
    run.fit(Model(), datamodule=Data())
    run.validate(Model(), datamodule=Data(), verbose=False)
    lines = capsys.readouterr().err.splitlines()
    training = [line for line in lines if line.startswith("training")]
    assert len(training) == PER_EPOCH  # the end is not said twice
    line = rf"training: 3 of {PER_EPOCH} steps \(25%\), [\d.,e+]+ steps/s, \d+:\d\d left, loss [\d.]+"
    assert re.fullmatch(line, training[2]), training[2]
    assert "validation: 2 of 2 batches (100%)" in lines[-1]


def test_progress_is_silent_until_it_is_time_and_when_disabled(tmp_path, monkeypatch, capsys):
    run = trainer(tmp_path, bar := PlainProgress())
    run.fit(Model(), datamodule=Data())
    monkeypatch.setattr(pace, "EVERY", 0.0)
    bar.disable()
    run.test(type("Tested", (Model,), {"test_step": lambda *_: None})(), Data().val_dataloader(), verbose=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"validation after {PER_EPOCH} steps"]
    bar.enable()
    run.predict(type("Told", (Model,), {"predict_step": lambda *_: 1})(), Data().val_dataloader())
    assert "predict: 2 of 2 batches" in capsys.readouterr().err


def test_pace_tells_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    copying = Pace("copying", 20_000, "pages", done=4_000)
    now[0] += 4
    copying.at(8_000)
    assert copying.line() == "copying: 8,000 of 20,000 pages (40%), 1,000 pages/s, 0:12 left"
    now[0] += 2 * 3600
    assert re.search(r"0\.555 pages/s, 6:00:\d\d left", copying.line())
    assert Pace("copying", float("inf"), "pages").line() == "copying: 0 pages, 0 pages/s"


def test_track_gives_the_items_and_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(pace, "EVERY", 0.0)
    assert list(track(iter("abc"), "reading", 3, "letters")) == list("abc")
    assert "reading: 3 of 3 letters (100%)" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track("abc", "reading")) == list("abc")
    assert "3/3" in capsys.readouterr().err
    assert isinstance(progress_bar(), TQDMProgressBar)


def test_throughput_counts_what_batches_know_of_themselves(tmp_path):
    class Sized(Data):
        def make_batch(self, epoch, batch):
            time.sleep(0.01)
            made = super().make_batch(epoch, batch)
            made.target_tokens, made.padding, made.positions, made.flops = 30, 5, 50, 1e9
            return made

    class KnownPeak(TrainingThroughput):
        def setup(self, *arguments, **more):
            super().setup(*arguments, **more)
            self.available_flops = 1e12

    logger = KeptRows(tmp_path)
    run = trainer(tmp_path, KnownPeak(), GradientNorm(), logger=logger, val_check_interval=3)
    run.fit(Model(), datamodule=Sized())
    rows = [row for row in logger.rows if "train/mfu" in row]
    assert len(rows) == PER_EPOCH // 4
    for row in rows:
        # four batches of 10 ms that the training waited for
        seconds = 4 * 30 / row["train/target_tokens_per_second"]
        assert 0.03 < row["train/loader_wait_share"] * seconds <= seconds
        assert row["train/padding_share"] == pytest.approx(0.1)
        assert row["train/mfu"] == pytest.approx(row["train/target_tokens_per_second"] / 30 * 1e-3)
        assert 0.01 < row["train/peak_memory_gib"] < 100


def test_the_gradient_norm_is_the_one_before_clipping_and_the_rate_the_steps_own(tmp_path):
    norms = []

    class Measured(Model):
        def on_before_optimizer_step(self, optimizer):
            norms.append(torch.cat([p.grad.flatten() for p in self.parameters()]).norm().item())

    logger = KeptRows(tmp_path)
    run = trainer(tmp_path, GradientNorm(), logger=logger, gradient_clip_val=1e-3)
    run.fit(Measured(), datamodule=Data())
    rows = {row["step"]: row for row in logger.rows if "train/gradient_norm" in row}
    assert sorted(rows) == [3, 7, 11]
    for step, row in rows.items():
        assert row["train/gradient_norm"] == pytest.approx(norms[step])
        assert row["train/learning_rate"] == pytest.approx(1e-2 * (1 - step / (PER_EPOCH + 1)))


def test_groups_with_different_rates_are_logged_by_name_and_deepspeeds_norm_is_asked_for():
    logged = {}
    module = SimpleNamespace(log=logged.__setitem__)
    engine = SimpleNamespace(get_global_grad_norm=lambda: 2.5)
    run = SimpleNamespace(_logger_connector=SimpleNamespace(should_update_logs=True), model=engine)
    groups = [{"params": [], "lr": 0.1, "name": "old"}, {"params": [], "lr": 0.2, "name": "new"}]
    GradientNorm().on_before_optimizer_step(run, module, SimpleNamespace(param_groups=groups))
    GradientNorm().on_train_batch_end(run, module)
    assert logged == {"train/learning_rate/old": 0.1, "train/learning_rate/new": 0.2, "train/gradient_norm": 2.5}
