"""A run that is told to stop, or breaks, and goes on afterwards, is the run that was left alone."""

import multiprocessing
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_training import PER_EPOCH, Data, Model
from two_processes import in_processes

from kedit.running.guard import NonFinite
from kedit.running.position import TrainingPosition
from kedit.running.signals import Agreement, OrderlyStop, Stopped, requeue

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Rows(CSVLogger):
    """Keeps what is logged."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.rows: list[tuple[int, str, float]] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows += [(step, name, value) for name, value in metrics.items() if "loss" in name]


class At(Callback):
    """Does something before the batch of a number, from 1 over all epochs."""

    def __init__(self, batch: int, do) -> None:
        self.batch, self.do, self.seen = batch, do, 0

    def on_train_batch_start(self, *_) -> None:
        self.seen += 1
        if self.seen == self.batch:
            self.do()


def fit(folder: Path, *callbacks, resume: Path | None = None, saving: bool = True, **arguments):
    seed_everything(3, verbose=False)
    saved = ModelCheckpoint(folder, "{step}", every_n_train_steps=1000, save_last=True, save_on_exception=True)
    logger = Rows(folder)
    trainer = Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, **arguments},
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=saving,
        use_distributed_sampler=False,
        logger=logger,
        callbacks=[TrainingPosition(), *callbacks, OrderlyStop(), *([saved] if saving else [])],
    )
    model = Model()
    model.rows = logger.rows
    model.trained_by = trainer
    try:
        trainer.fit(model, datamodule=Data(), ckpt_path=resume, weights_only=True)
        model.ended = None
    except BaseException as exception:
        model.ended = exception
    return model


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "batch", "window"),
    [(15, 3, 1), (10, PER_EPOCH, 1), (10, 8, 3), (15, PER_EPOCH + 2, 3)],
    ids=["mid", "epoch end", "window", "second epoch"],
)
def test_a_signal_saves_at_the_end_of_the_step_and_the_rest_follows_exactly(tmp_path, capsys, number, batch, window):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)]
    arguments = {"accumulate_grad_batches": window, "val_check_interval": 3, "limit_val_batches": 1}
    whole = fit(tmp_path / "whole", **arguments)
    first = fit(tmp_path / "parts", At(batch, send(number)), **arguments)
    assert isinstance(first.ended, Stopped)
    assert first.ended.code == 75
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)] == before
    last = tmp_path / "parts" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"{signal.Signals(number).name}: {last} saved at step {step}" in capsys.readouterr().err
    assert [path.name for path in last.parent.glob("*.ckpt")] == ["last.ckpt"]
    rest = fit(tmp_path / "parts", resume=last, **arguments)
    assert rest.ended is None
    assert first.seen + rest.seen == whole.seen
    assert len(first.seen) < batch + window
    assert all(map(torch.equal, rest.state_dict().values(), whole.state_dict().values()))
    training = [row for row in whole.rows if row[1] == "train/loss"]
    assert [row for row in first.rows + rest.rows if row[1] == "train/loss"] == training
    assert [path.name for path in last.parent.glob("*.ckpt")] == ["last.ckpt"]  # and no last-v1.ckpt


class InValidation(Callback):
    """Does something before a batch of the validation at a step, and keeps what validations say."""

    def __init__(self, step: int = 0, batch: int = 0, do=None) -> None:
        self.step, self.batch, self.do = step, batch, do
        self.losses: list[tuple[int, float]] = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        if (trainer.global_step, batch_idx) == (self.step, self.batch) and not trainer.sanity_checking:
            self.do()

    def on_validation_end(self, trainer, *_) -> None:
        if not trainer.sanity_checking:
            self.losses.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


@pytest.mark.parametrize(("step", "batch"), [(3, 0), (PER_EPOCH, 1)])
@pytest.mark.parametrize("do", [send(15), lambda: broken()], ids=["signal", "exception"])
def test_what_ends_a_run_in_a_validation_costs_that_validation_only(tmp_path, step, batch, do):
    arguments = {"accumulate_grad_batches": 2, "val_check_interval": 6}
    told = InValidation()
    whole = fit(tmp_path / "whole", told, **arguments)
    first = fit(tmp_path / "parts", InValidation(step, batch, do), **arguments)
    assert first.ended is not None
    assert len(first.seen) == 2 * step
    again = InValidation()
    rest = fit(tmp_path / "parts", again, resume=tmp_path / "parts" / "last.ckpt", **arguments)
    assert rest.ended is None
    assert first.seen + rest.seen == whole.seen
    assert again.losses == [one for one in told.losses if one[0] >= step]
    assert all(map(torch.equal, rest.state_dict().values(), whole.state_dict().values()))


def test_a_signal_at_the_end_of_a_validation_keeps_what_that_said(tmp_path):
    """As in a run of several processes, whose signals are looked at there."""
    told = InValidation()
    whole = fit(tmp_path / "whole", told, val_check_interval=4)

    class AtItsEnd(Callback):
        def on_validation_end(self, trainer, *_) -> None:
            if trainer.global_step == 4:
                send(15)()

    best = ModelCheckpoint(tmp_path / "best", "{step}", monitor="val/loss")
    first = fit(tmp_path / "parts", AtItsEnd(), best, val_check_interval=4)
    assert first.ended.code == 75
    assert (tmp_path / "best" / "step=4.ckpt").exists()
    again = InValidation()
    rest = fit(tmp_path / "parts", again, resume=tmp_path / "best" / "last.ckpt", val_check_interval=4)
    assert first.seen + rest.seen == whole.seen
    assert again.losses == told.losses[1:]


def test_an_exception_after_a_validation_does_not_repeat_it(tmp_path):
    told, again = InValidation(), InValidation()
    whole = fit(tmp_path / "whole", told, val_check_interval=4)
    first = fit(tmp_path / "parts", At(5, broken), val_check_interval=4)
    rest = fit(tmp_path / "parts", again, resume=tmp_path / "parts" / "last.ckpt", val_check_interval=4)
    assert first.seen[:4] + rest.seen == whole.seen
    assert again.losses == told.losses[1:]


def broken():
    raise RuntimeError("a worker was killed")


@pytest.mark.parametrize(("batch", "window"), [(4, 1), (6, 2), (PER_EPOCH + 3, 3), (PER_EPOCH + 1, 2)])
def test_an_exception_saves_the_end_of_the_last_step(tmp_path, capsys, batch, window):
    whole = fit(tmp_path / "whole", accumulate_grad_batches=window)
    first = fit(tmp_path / "parts", At(batch, broken), accumulate_grad_batches=window)
    assert str(first.ended) == "a worker was killed"
    last = tmp_path / "parts" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    assert f"{last} was saved as of step {state['global_step']}" in capsys.readouterr().err
    rest = fit(tmp_path / "parts", resume=last, accumulate_grad_batches=window)
    assert rest.ended is None
    kept = state["Data"]["consumed"]
    assert batch - window <= kept < batch
    assert first.seen[:kept] + rest.seen == whole.seen
    assert all(map(torch.equal, rest.state_dict().values(), whole.state_dict().values()))


def half_stepped(*_):
    raise RuntimeError("out of memory in the optimiser")


def not_finite():
    raise NonFinite("the loss is nan")


def interrupted():
    raise KeyboardInterrupt


def full_disk():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("case", ["first step", "in the optimiser", "not finite", "ctrl-c"])
def test_what_cannot_be_trusted_is_not_saved(tmp_path, monkeypatch, case):
    if case == "in the optimiser":
        steps = iter([None, None])
        step = torch.optim.AdamW.step

        def stepping(self, closure=None):
            done = step(self, closure)
            return half_stepped() if next(steps, "end") == "end" else done

        monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
        ended = fit(tmp_path).ended
    else:
        batch, do = {"first step": (1, broken), "not finite": (5, not_finite), "ctrl-c": (5, interrupted)}[case]
        ended = fit(tmp_path, At(batch, do)).ended
    assert ended is not None
    assert not list(tmp_path.glob("*.ckpt"))


def test_that_no_checkpoint_could_be_written_does_not_hide_what_happened(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda *_: full_disk())
    assert str(fit(tmp_path, At(4, broken)).ended) == "a worker was killed"
    assert "no checkpoint could be written of step 3: [Errno 28]" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_run_that_saves_nothing_says_so_by_its_code(tmp_path, number, code):
    assert fit(tmp_path, At(3, send(number)), saving=False).ended.code == code


def test_slurm_is_asked_to_queue_the_job_again(tmp_path, monkeypatch, capsys):
    control = tmp_path / "scontrol"
    control.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\necho no such job >&2\nexit ${ANSWER:-0}\n')
    control.chmod(control.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "77"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    slurm = {"plugins": [SLURMEnvironment(auto_requeue=True)]}
    assert fit(tmp_path / "run", At(3, send(signal.SIGUSR1)), **slurm).ended.code == 75
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert fit(tmp_path / "other", At(3, send(signal.SIGTERM)), **slurm).ended.code == 75
    assert (tmp_path / "asked").read_text() == "requeue 77\n"  # who cancels a job does not want it again
    assert "job 77 is requeued" in capsys.readouterr().err
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("ANSWER", "1")
    requeue()
    assert "job 70_3 could not be requeued: no such job" in capsys.readouterr().err
    assert (tmp_path / "asked").read_text().endswith("requeue 70_3\n")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3; rm")
    requeue()
    assert "not requeued" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    monkeypatch.setenv("PATH", "")
    requeue()
    assert "could not be requeued" in capsys.readouterr().err


# several processes


def one_of_two(folder: Path, rank: int, port: int, stop: Callback | None, resume: Path | None) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x",
                   "GROUP_RANK": "0"}  # fmt: skip
    torch.set_num_threads(1)
    stops = [stop] if rank == 1 and stop is not None else []
    arguments = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": 2, "val_check_interval": 8}
    model = fit(folder, *stops, resume=resume, **arguments)
    report = {"code": getattr(model.ended, "code", None), "error": repr(model.ended), "seen": model.seen,
              "step": model.trained_by.global_step}  # fmt: skip
    torch.save((report, model.state_dict()), folder / f"report-{rank}")
    os._exit(0)


def two(folder: Path, stop: Callback | None = None, resume: Path | None = None) -> list:
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one_of_two, args=(folder, rank, port, stop, resume)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"report-{rank}", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return two(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("stop", "least", "most"),
    [(At(7, send(10)), 4, 6), (InValidation(4, 0, send(10)), 4, 4)],  # batches 7 and 8 are step 4
    ids=["in training", "in validation"],
)
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path, whole, stop, least, most):
    first = two(tmp_path / "parts", stop)
    assert [report["code"] for report, _ in first] == [75, 75], first[0][0]["error"]
    last = tmp_path / "parts" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert {report["step"] for report, _ in first} == {step}
    assert least <= step <= most
    rest = two(tmp_path / "parts", resume=last)
    for rank in (0, 1):
        assert rest[rank][0]["error"] == "None"
        assert first[rank][0]["seen"] + rest[rank][0]["seen"] == whole[rank][0]["seen"]
        assert all(map(torch.equal, rest[rank][1].values(), whole[rank][1].values()))


def test_before_training_a_signal_ends_its_process_and_the_other_does_not_wait_for_it(tmp_path):
    class InSanityCheck(Callback):
        def on_validation_batch_start(self, trainer, *_) -> None:
            if trainer.sanity_checking and trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    def work(rank: int) -> None:
        ended = fit(tmp_path, InSanityCheck(), strategy="ddp", devices=2).ended
        os._exit(3 if isinstance(ended, RuntimeError) else 0)

    assert in_processes(work) == [3, -signal.SIGTERM]


def test_who_launched_the_others_ends_them_with_itself(tmp_path):
    def work(rank: int) -> None:
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        child = subprocess.Popen(["sleep", "60"])
        trainer.strategy._launcher = SimpleNamespace(procs=[child], kill=child.send_signal)
        (tmp_path / "child").write_text(str(child.pid))
        OrderlyStop().setup(trainer, Model(), "fit")
        os.kill(os.getpid(), signal.SIGUSR1)

    assert in_processes(work, 1) == [-signal.SIGUSR1]
    child = Path("/proc") / (tmp_path / "child").read_text() / "stat"
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_signal_while_training_ends_lets_it_save_and_ends_the_test_that_follows(tmp_path):
    class AtTheEnd(Callback):
        def on_train_end(self, *_) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def work(rank: int) -> None:
        made = fit(tmp_path, AtTheEnd())
        (tmp_path / "ended").write_text(repr(made.ended))
        made.trained_by.validate(made, datamodule=Data(), verbose=False)

    assert in_processes(work, 1) == [-signal.SIGTERM]
    assert (tmp_path / "ended").read_text() == "None"


def test_when_all_have_saved_the_first_is_not_killed_for_the_others_end(tmp_path, monkeypatch):
    child = subprocess.Popen(["sh", "-c", "exit 75"])
    child.wait()
    observer = _ChildProcessObserver(os.getpid(), [child], sleep_period=0)
    killed = []
    monkeypatch.setattr(observer, "_terminate_all", lambda: killed.append(1))
    assert observer._run()
    assert killed == [1]
    monkeypatch.setattr("threading.enumerate", lambda: [observer])
    assert fit(tmp_path, At(3, send(signal.SIGTERM))).ended.code == 75
    assert observer._run()
    assert killed == [1]


def test_an_agreement_is_known_one_round_later(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        agreement = Agreement(torch.device("cpu"))
        answers = []
        for number in (0, 15, 10):
            answers.append(agreement.answer())
            agreement.ask(number)
        assert [*answers, agreement.answer(), agreement.answer()] == [0, 0, 15, 10, 0]
    finally:
        torch.distributed.destroy_process_group()
