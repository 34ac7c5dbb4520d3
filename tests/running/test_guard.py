"""What is not finite stops a run in its step, reaches no checkpoint, and is named: every place where it may arise."""

import json
import multiprocessing
import os
import socket
import traceback
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from tiny_training import PER_EPOCH, Data, Model

from kedit.editing.sources import DataError
from kedit.running import guard as module
from kedit.running.errors import told
from kedit.running.guard import FiniteTraining, Guard, NonFinite
from kedit.running.position import TrainingPosition

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NAN, INF = float("nan"), float("inf")
STEP = 5


class Numbered(Data):
    """Batches that know the numbers of their rows, `poisoned` one with a value that is no number."""

    poisoned = -1

    def make_batch(self, epoch, batch):
        made = super().make_batch(epoch, batch)
        made.numbers = made.rows
        if epoch * PER_EPOCH + batch == self.poisoned:
            made.x[1, 2] = NAN
        return made


class Poisoned(Model):
    """Something is not finite at some micro-batches, counted from 1.

    Args:
        kind: loss, constant (of the loss: no gradient shows it), gradient, validation, weight, state.
        value: what it becomes.
        at: at which micro-batches.
        rank: of the process to which it happens.
    """

    def __init__(self, kind: str, value: float = NAN, at=(STEP,), rank: int = 0) -> None:
        super().__init__()
        self.kind, self.value, self.at, self.rank = kind, value, at, rank
        self.count = 0
        self.net[2].weight.register_hook(self.spoil)

    @property
    def now(self) -> bool:
        return self.count in self.at and self.trainer.global_rank == self.rank

    def spoil(self, gradient):
        if self.kind == "gradient" and self.now:
            gradient = gradient.clone()
            gradient[0, 3] = self.value
        return gradient

    def training_step(self, batch, batch_idx):
        self.count += 1
        loss = super().training_step(batch, batch_idx)
        if self.kind == "loss" and self.now:
            return loss * self.value
        return loss + self.value if self.kind == "constant" and self.now else loss

    def optimizer_step(self, *arguments, **more) -> None:
        super().optimizer_step(*arguments, **more)
        if self.kind == "weight" and self.now:
            self.net[0].weight.data[1, 1] = self.value
        if self.kind in ("exp_avg", "exp_avg_sq") and self.now:
            self.optimizers().state[self.net[0].bias][self.kind][2] = self.value

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", batch.mean() * (self.value if self.kind == "validation" else 1.0))


class SeenAfter(Callback):
    """Weights and optimiser state after every step."""

    def __init__(self) -> None:
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        state = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        for number, moments in trainer.optimizers[0].state_dict()["state"].items():
            state |= {f"{key}/{number}": value.clone() for key, value in moments.items()}
        self.states.append(state)


def trainer(folder: Path, guard: Guard | None = None, *callbacks, **arguments) -> Trainer:
    seed_everything(1, verbose=False)
    saved = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_exception=True)
    defaults = {"max_epochs": 1, "logger": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return Trainer(
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        callbacks=[TrainingPosition(), FiniteTraining(guard), *callbacks, saved],
        **(defaults | arguments),
    )


def checkpoints_are_finite(folder: Path) -> int:
    """How many checkpoints there are; none may hold what is not finite."""
    files = list(folder.glob("*.ckpt"))
    for file in files:
        state = torch.load(file, weights_only=True)
        tensors = [*state["state_dict"].values()]
        tensors += [value for moments in state["optimizer_states"][0]["state"].values() for value in moments.values()]
        assert all(tensor.isfinite().all() for tensor in tensors), file
    return len(files)


LOSS = f"the loss of step {STEP} is not finite: epoch 0, batch {STEP - 1} (rows "
GRADIENT = f"the gradient of step {STEP} is not finite at net.2.weight, though its loss is: epoch 0, batch {STEP - 1} ("
TWO = {"accumulate_grad_batches": 2}
CASES = {
    "loss nan": (("loss", NAN), {}, LOSS),
    "loss inf": (("loss", INF), {}, LOSS),
    "loss -inf": (("loss", -INF), {}, LOSS),
    "loss nan, gradients finite": (("constant", NAN), {}, LOSS),
    "loss inf, gradients finite": (("constant", INF), {}, LOSS),
    "gradient nan": (("gradient", NAN), {}, GRADIENT),
    "gradient inf": (("gradient", INF), {}, GRADIENT),
    "gradient -inf": (("gradient", -INF), {}, GRADIENT),
    "gradient whose norm overflows": (("gradient", 3e38), {}, GRADIENT.replace(" at net.2.weight", "")),
    "gradient, clipped": (("gradient", INF), {"gradient_clip_val": 1.0}, GRADIENT),
    "loss, first micro-batch": (("loss", NAN, (2 * STEP - 1,)), TWO, LOSS.replace("batch 4", "batch 8")),
    "loss, second micro-batch": (("loss", INF, (2 * STEP,)), TWO, LOSS.replace("batch 4", "batch 9")),
    "gradient, first micro-batch": (("gradient", INF, (2 * STEP - 1,)), TWO, GRADIENT.replace("batch 4", "batch 8")),
    "gradient, second micro-batch": (("gradient", NAN, (2 * STEP,)), TWO, "; epoch 0, batch 9 (rows "),
    "loss, bf16-mixed": (("loss", NAN), {"precision": "bf16-mixed"}, LOSS),
    "gradient, bf16-mixed": (("gradient", INF), {"precision": "bf16-mixed"}, GRADIENT),
    "gradient, bf16-true": (("gradient", NAN), {"precision": "bf16-true"}, GRADIENT),
    "weight nan": (("weight", NAN), {}, f"net.0.weight is not finite after step {STEP}: epoch 0, batch {STEP - 1} ("),
    "weight inf": (("weight", INF), {}, f"net.0.weight is not finite after step {STEP}: epoch 0, batch {STEP - 1} ("),
    "first moment": (("exp_avg", NAN), {}, f"the optimiser's exp_avg of net.0.bias is not finite after step {STEP}"),
    "second moment": (("exp_avg_sq", INF), {}, f"exp_avg_sq of net.0.bias is not finite after step {STEP}"),
    "validation": (
        ("validation", NAN), {"val_check_interval": STEP},
        f"val/loss is nan in the validation after step {STEP} (epoch 0)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_finite_stops_the_run_in_its_step(tmp_path, case):
    kind, options, words = CASES[case]
    run, model = trainer(tmp_path, **options), Poisoned(*kind)
    with pytest.raises(NonFinite) as caught:
        run.fit(model, datamodule=Numbered())
    text = told(caught.value)
    assert words in text
    assert len(text.splitlines()) <= 3
    assert "--ckpt_path last" in text
    assert model.count <= STEP * run.accumulate_grad_batches
    assert checkpoints_are_finite(tmp_path) == (STEP if kind[0] == "validation" else STEP - 1)
    if kind[0] in ("loss", "constant", "gradient"):
        assert all(parameter.isfinite().all() for parameter in model.parameters())  # no step was taken


def test_a_value_of_the_data_that_is_no_number_is_named_by_its_rows(tmp_path):
    data = Numbered()
    data.poisoned = 3
    with pytest.raises(NonFinite) as caught:
        trainer(tmp_path).fit(Model(), datamodule=data)
    rows = ", ".join(map(str, data.make_batch(0, 3).rows))
    assert f"the loss of step 4 is not finite: epoch 0, batch 3 (rows {rows})" in str(caught.value)


def test_a_step_that_makes_weights_infinite_is_not_saved(tmp_path):
    class Leaps(Model):
        def on_before_optimizer_step(self, optimizer) -> None:
            if self.global_step == 2:
                optimizer.param_groups[0]["lr"] = INF

    with pytest.raises(NonFinite, match=r"net.0.weight is not finite after step 3: epoch 0, batch 2"):
        trainer(tmp_path).fit(Leaps(), datamodule=Numbered())
    assert checkpoints_are_finite(tmp_path) == 2


def test_long_lists_of_samples_and_of_batches_are_cut():
    place = module._Place(1, 2, "documents", [*range(20), 3])
    assert str(place) == "epoch 1, batch 2 (documents 0, 1, 2, 3, 4, 5, 6, 7, ... 20 in all)"
    assert str(module._Place(0, 0)) == "epoch 0, batch 0"


# --- steps that are left out


@pytest.mark.parametrize(
    ("kind", "window", "precision"),
    [("loss", 1, "32-true"), ("constant", 2, "32-true"), ("gradient", 2, "bf16-mixed")],
)
def test_a_step_that_is_left_out_changes_nothing_and_is_counted(tmp_path, kind, window, precision):
    bad = (3 * window, 5 * window)
    seen, logger = SeenAfter(), CSVLogger(tmp_path)
    run = trainer(
        tmp_path, Guard(skip=2), seen, accumulate_grad_batches=window, precision=precision, logger=logger,
        gradient_clip_val=1.0,
    )  # fmt: skip
    logged = []
    logger.log_metrics = lambda metrics, step=None: logged.append((step, metrics))
    run.fit(Poisoned(kind, NAN, bad), datamodule=Numbered())
    steps = seen.states[window - 1 :: window]
    same = [all(torch.equal(a[key], b[key]) for key in b) for a, b in pairwise(steps)]
    assert [step + 2 for step, is_same in enumerate(same) if is_same] == [3, 5]
    assert checkpoints_are_finite(tmp_path) == len(steps)
    left_out = [(step, one["train/skipped_steps"]) for step, one in logged if "train/skipped_steps" in one]
    assert left_out == [(3, 1.0), (5, 2.0)]


def test_one_more_than_may_be_left_out_stops_the_run_also_after_a_resume(tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch")
    with pytest.raises(NonFinite, match=r"(?s)step 6 is not finite.*1 steps were left out before"):
        trainer(tmp_path, Guard(skip=1)).fit(Poisoned("loss", NAN, (2, 6)), datamodule=Numbered())
    assert "left out (number 1 of at most 1): the loss of step 2 is not finite: epoch 0, batch 1 (rows" in caplog.text
    assert checkpoints_are_finite(tmp_path) == 5
    run = trainer(tmp_path, Guard(skip=1))
    with pytest.raises(NonFinite, match="the loss of step 8 is not finite"):
        run.fit(
            Poisoned("loss", NAN, (3,)), datamodule=Numbered(), ckpt_path=tmp_path / "step=5.ckpt", weights_only=True
        )


def test_deepspeed_leaves_no_step_out_and_a_number_below_zero_is_none():
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    with pytest.raises(DataError, match=r"guard\.skip is 2, but DeepSpeed steps by itself"):
        FiniteTraining(Guard(2)).setup(SimpleNamespace(strategy=strategy), None, "fit")
    with pytest.raises(DataError, match=r"guard\.skip is -1"):
        Guard(-1)


def test_in_float16_a_gradient_that_overflows_is_the_scalers_to_mend(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer(tmp_path, plugins=plugin).fit(Poisoned("gradient", INF), datamodule=Numbered())
    assert scaler.get_scale() == 2.0
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(NonFinite, match=f"the gradient of step {STEP}"):
        trainer(tmp_path / "one", plugins=plugin).fit(Poisoned("gradient", INF), datamodule=Numbered())


# --- a verdict that is still on its way, as on a GPU


@pytest.fixture
def late(monkeypatch):
    """Verdicts come as from a GPU: they must be waited for."""
    waited = []

    def send(self, step, flags) -> None:
        step.flags, step.copied = flags, SimpleNamespace(synchronize=lambda: waited.append(step.number))
        self._waiting.append(step)

    monkeypatch.setattr(FiniteTraining, "_send", send)
    return waited


def test_a_late_verdict_stops_the_run_before_the_next_step_and_before_anything_is_saved(tmp_path, late):
    run, model = trainer(tmp_path, log_every_n_steps=1), Poisoned("constant")
    run.checkpoint_callback._every_n_train_steps = 3
    with pytest.raises(NonFinite) as caught:
        run.fit(model, datamodule=Numbered())
    assert LOSS in str(caught.value)
    assert run.global_step == STEP
    assert model.count == STEP + 1  # the next step was begun, and not taken
    assert late == [1, 2, 3, 4, 5]
    assert checkpoints_are_finite(tmp_path) == 1


@pytest.mark.parametrize("every", [STEP, 1])
def test_a_late_verdict_is_read_before_a_checkpoint(tmp_path, late, every):
    run = trainer(tmp_path)
    run.checkpoint_callback._every_n_train_steps = every
    with pytest.raises(NonFinite, match=f"the gradient of step {STEP} is not finite, though its loss is"):
        run.fit(Poisoned("gradient"), datamodule=Numbered())
    assert checkpoints_are_finite(tmp_path) == (STEP - 1) // every


def test_a_late_verdict_is_read_at_the_end_and_before_a_validation(tmp_path, late):
    for number, options in enumerate([{"max_steps": STEP}, {"val_check_interval": STEP}]):
        run = trainer(tmp_path / str(number), **options)
        run.checkpoint_callback._every_n_train_steps = 100
        model = Poisoned("constant")
        with pytest.raises(NonFinite, match=f"the loss of step {STEP}"):
            run.fit(model, datamodule=Numbered())
        assert model.count == STEP


def test_weights_saved_alone_are_never_those_of_a_bad_step(tmp_path, late):
    run = trainer(tmp_path)
    run.checkpoint_callback.save_weights_only = True
    with pytest.raises(NonFinite, match=f"the gradient of step {STEP}"):
        run.fit(Poisoned("gradient"), datamodule=Numbered())
    assert late == [1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("*.ckpt"))) == STEP - 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits are made visible by CUDA")
def test_on_a_gpu_no_step_waits_for_its_verdict(tmp_path):
    class Watched(FiniteTraining):
        def on_before_backward(self, *arguments) -> None:
            self.watch(super().on_before_backward, *arguments)

        def on_before_optimizer_step(self, *arguments) -> None:
            self.watch(super().on_before_optimizer_step, *arguments)

        def watch(self, hook, *arguments) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                hook(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    run = trainer(tmp_path, accelerator="gpu", devices=1)
    guard = next(n for n, callback in enumerate(run.callbacks) if isinstance(callback, FiniteTraining))
    run.callbacks[guard] = Watched()
    with pytest.raises(NonFinite, match=f"the gradient of step {STEP}"):
        run.fit(Poisoned("gradient"), datamodule=Numbered())
    assert checkpoints_are_finite(tmp_path) == STEP - 1


# --- several processes


def child(folder: Path, rank: int, port: int, kind: str, bad_rank: int, skip: int, stage: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "guard"
    torch.set_num_threads(1)
    code, model = 1, Poisoned(kind, NAN, (STEP,), bad_rank)
    try:
        strategy = "ddp"
        if stage:
            from cpu_deepspeed import CPUDeepSpeed

            strategy = CPUDeepSpeed(stage)
        run = trainer(folder, Guard(skip), strategy=strategy, devices=2)
        try:
            run.fit(model, datamodule=Numbered())
            text = ""
        except NonFinite as error:
            text = str(error)
        weights = [parameter.sum().item() for parameter in model.parameters()]
        (folder / f"{rank}.json").write_text(json.dumps([text, model.count, weights]))
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


@pytest.mark.parametrize(
    ("kind", "bad_rank", "skip", "stage", "words"),
    [
        ("constant", 1, 0, 0, [f"the loss of step {STEP} is not finite: epoch 0, batch 4 (rows ", " of process 1\n"]),
        ("gradient", 0, 0, 0, [f"the gradient of step {STEP} is not finite", " of process 0; ", " of process 1\n"]),
        ("weight", 1, 0, 0, [f"is not finite after step {STEP}"]),
        ("loss", 1, 1, 0, []),
        ("gradient", 1, 0, 2, [f"the gradient of step {STEP} is not finite", " of process 0; ", " of process 1\n"]),
        ("constant", 1, 0, 3, [f"the loss of step {STEP} is not finite: epoch 0, batch 4 (rows ", " of process 1\n"]),
    ],
)
def test_all_processes_stop_in_the_same_step_and_none_hangs(tmp_path, kind, bad_rank, skip, stage, words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=child, args=(tmp_path, rank, port, kind, bad_rank, skip, stage)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (one, steps, weights), (other, same_steps, same_weights) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert steps == same_steps == (PER_EPOCH if skip else STEP)
    if stage:
        assert len(list(tmp_path.glob("*.ckpt"))) == STEP - 1
    else:
        assert checkpoints_are_finite(tmp_path) == (PER_EPOCH if skip else STEP - 1)
    assert kind == "weight" or stage or weights == same_weights
    for text in (one, other):
        assert all(part in text for part in words)
        assert len(text.splitlines()) == (0 if skip else 2)
