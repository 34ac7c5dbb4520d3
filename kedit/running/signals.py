"""A run that is told to stop (SIGTERM, SIGUSR1), or breaks, saves what it has at the end of an optimiser step. Knows no
method.

Lightning saves in the middle of a step, under SLURM inside the signal handler; it ends SIGTERM with exit code 0; it
asks all processes before every batch whether one was signalled, and waits for the answer; and outside of training it
waits in its handler for processes that were not signalled. None of its handlers is installed.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from kedit.running.data import ResumableData
from kedit.running.guard import NonFinite
from kedit.running.last import save_last
from kedit.running.parsing import PROGRAM
from kedit.running.position import DUE, validation_due

RESUME = 75
"""Exit code (EX_TEMPFAIL) of a run that was stopped by a signal and has saved where it was."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """A signal stopped the run. Its code is `RESUME` where a checkpoint was saved, else 128 + the signal's number."""


class OrderlyStop(Callback):
    """Saves `last.ckpt` at the end of the optimiser step in which a signal came, on all processes at the same step.

    A signal that one process gets counts for all. Which were signalled is summed up while the next step runs, so nobody
    waits for it: a run of several processes stops one step later than a run of one.

    Outside of training there is nothing to save: a signal ends the process at once, and those it launched.

    In a validation a run of one process saves and stops after the batch that is judged, and goes on with the whole
    validation; several processes, which may have different numbers of batches, stop at its end.

    An exception in training saves too, as of the end of the last optimiser step, in a run of one process: several
    cannot agree when one has broken. What has become infinite or not a number is never saved.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Any] = {}
        self._outside: dict[int, Any] = {}
        self._agreement: Agreement | None = None
        self._boundary: _Boundary | None = None
        self._rolled_back: _Boundary | None = None
        self._step = 0
        self._stepping = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        launcher, process = trainer.strategy.launcher, os.getpid()

        def end(number: int, frame: FrameType | None) -> None:
            if launcher is not None and os.getpid() == process:  # a loader's worker has our handlers
                launcher.kill(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        if getattr(launcher, "procs", None) and not self._outside and _in_main_thread():
            # elsewhere the system ends the process, also one that waits for others and runs no handler
            self._outside = {number: signal.signal(number, end) for number in SIGNALS}
        if self._received:  # while training ended, before this test
            os.kill(os.getpid(), self._received)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = 0
        if _in_main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        for callback in trainer.checkpoint_callbacks:
            callback.save_on_exception = False  # type: ignore[attr-defined]  # it would save in the middle of a step
        self._agreement = Agreement(trainer.strategy.root_device) if trainer.world_size > 1 else None
        self._boundary, self._step = None, trainer.global_step

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._stepping = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stepping = False
        if trainer.global_step == self._step:
            return  # in the middle of an accumulation
        self._step = trainer.global_step
        if number := self._signalled(trainer):
            self._stop(trainer, number)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        boundary = self._boundary
        if self._received and trainer.state.fn == TrainerFn.FITTING and boundary is not None and boundary.due:
            self._rolled_back = boundary
            self._stop(trainer, self._received)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if number := self._signalled(trainer, now=True):
            for callback in trainer.checkpoint_callbacks:  # it may be the best so far; they come after us
                callback.on_validation_end(trainer, pl_module)
            self._stop(trainer, number)

    def _signalled(self, trainer: Trainer, now: bool = False) -> int:
        """Where a run may stop, the signal by which it should, 0 for none: of several processes, what any had got when
        this was asked before, or with `now`, waiting for the others, what any has got.
        """
        if self._agreement is None:
            self._boundary = _Boundary(trainer)
            return self._received
        number = self._agreement.answer()
        self._agreement.ask(self._received)
        return max(number, self._agreement.answer()) if now else number

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._boundary = None  # what breaks from here on, as in a test, is no training

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._save_what_is_left(trainer, exception)
        finally:
            self._put_back()

    def _save_what_is_left(self, trainer: Trainer, exception: BaseException) -> None:
        boundary = self._boundary
        if (
            not isinstance(exception, Exception)  # a signal, or Ctrl-C, which may come anywhere
            or isinstance(exception, NonFinite)
            or boundary is None  # no step was made, or there are several processes
            or self._stepping  # weights may be new and their step not counted
        ):
            return
        boundary.take_back()
        self._rolled_back = boundary
        try:
            path = save_last(trainer)
        except Exception as error:  # the exception that ended the run is the one to be told
            tell(f"no checkpoint could be written of step {boundary.step}: {error}")
            return
        finally:
            self._rolled_back = None
        if path is not None:
            tell(f"{path} was saved as of step {boundary.step}: go on from it by --ckpt_path last")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._rolled_back is not None:
            self._rolled_back.put_into(checkpoint)

    def _stop(self, trainer: Trainer, number: int) -> None:
        name = signal.Signals(number).name
        path = save_last(trainer)
        _all_end(trainer)
        if trainer.training:
            # Lightning logs a step behind this hook, and a run that goes on does not log it again
            trainer._logger_connector.update_train_step_metrics()
        if path is None:
            tell(f"{name}: stopped after step {trainer.global_step}; this run saves no checkpoints")
            raise Stopped(128 + number)
        tell(f"{name}: {path} saved at step {trainer.global_step}; go on by --ckpt_path last")
        environment = trainer._accelerator_connector.cluster_environment
        if number == signal.SIGUSR1 and isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            requeue()
        raise Stopped(RESUME)

    def _put_back(self) -> None:
        for number, handler in [*self._previous.items(), *self._outside.items()]:
            if handler is not None:
                signal.signal(number, handler)
        self._previous, self._outside = {}, {}


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _all_end(trainer: Trainer) -> None:
    """From here on processes may end in any order: Lightning's observer kills the first when another ended before."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []
    trainer.strategy.barrier("stopped")


class Agreement:
    """The largest number that any process has named, known one round later without waiting.

    Args:
        device: where the process group takes tensors from.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._asked: tuple[Tensor, Any] | None = None

    def ask(self, number: int) -> None:
        """Name a number; all processes do so in the same order of collectives."""
        # filled on the device: a copy from here would wait for it
        numbers = torch.full((1,), number, dtype=torch.int32, device=self.device)
        work = torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX, async_op=True)
        if self.device.type != "cuda":
            self._asked = numbers, work
            return
        work.wait()  # of the stream, not of this process
        host = torch.empty((1,), dtype=torch.int32, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._asked = host, copied

    def answer(self) -> int:
        """The largest number of the round before; 0 in the first."""
        if self._asked is None:
            return 0
        numbers, done = self._asked
        self._asked = None
        if self.device.type == "cuda":
            done.synchronize()
        else:
            done.wait()
        return int(numbers)


class _Boundary:
    """Where training stood at the end of an optimiser step: what later batches change though no step follows.

    Made where ModelCheckpoint saves, so that going on from here is going on from one of its checkpoints.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.step = trainer.global_step
        self._loops, self.due = trainer.fit_loop.state_dict(), validation_due(trainer)
        self._data = getattr(trainer, "datamodule", None)
        if isinstance(self._data, ResumableData):
            self._consumed, self._random = self._data.consumed, self._data._random

    def take_back(self) -> None:
        """Set the data back; the run is over."""
        if isinstance(self._data, ResumableData):
            self._data.consumed, self._data._random = self._consumed, self._random

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Make a later checkpoint's progress the one of then."""
        checkpoint["loops"]["fit_loop"] = self._loops
        if self.due:
            checkpoint[DUE] = self.due


@rank_zero_only
def tell(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


@rank_zero_only
def requeue() -> None:
    """Have SLURM queue this job again, from where `--ckpt_path last` goes on."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        tell(f"not requeued: SLURM_JOB_ID is {job!r}")
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        failure = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    tell(f"job {job} could not be requeued: {failure}" if failure else f"job {job} is requeued")
