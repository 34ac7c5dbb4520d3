"""What the callbacks that every run gets cost: a training step with them beside the same step without them.

In one training of a GPT-2 every second step, in a changing order, goes without our callbacks; the difference is taken
pair by pair, its median given. Beside it the microseconds that each callback's own hooks take in a step. With
--processes 2 it is DDP over gloo, and the numbers are the first process's.

    python tests/speed/overhead.py [--processes 2] [--steps 60] [--width 256] [--log-every 10] [--clock cpu]
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from kedit.running.curves import WholeCurves
from kedit.running.data import ResumableData
from kedit.running.estimate import RunEstimate
from kedit.running.guard import FiniteTraining
from kedit.running.last import LastCheckpoint
from kedit.running.position import TrainingPosition
from kedit.running.progress import PlainProgress
from kedit.running.signals import OrderlyStop
from kedit.running.stamp import Stamp
from kedit.running.throughput import GradientNorm, TrainingThroughput

sys.path.insert(0, str(Path(__file__).parents[1] / "running"))
OURS = (TrainingPosition, FiniteTraining, TrainingThroughput, GradientNorm, LastCheckpoint, WholeCurves, Stamp,
        OrderlyStop, RunEstimate, PlainProgress)  # fmt: skip
WARMING = 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
CLOCK = [time.perf_counter]
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_before_zero_grad",
         "on_train_batch_end", "on_after_backward")  # fmt: skip


@dataclass
class Batch:
    ids_BL: Tensor
    positions: int
    target_tokens: int
    padding: int = 0
    flops: float = 1e9


class Data(ResumableData):
    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__()
        self.rows, self.tokens = rows, tokens

    step_samples, steps_per_epoch = 8, 1000

    def make_batch(self, epoch: int, batch: int) -> Batch:
        ids = torch.randint(0, 1000, (self.rows, self.tokens), generator=torch.Generator().manual_seed(batch))
        return Batch(ids, ids.numel(), ids.numel())


class Model(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        config = AutoConfig.for_model("gpt2", n_embd=width, n_layer=4, n_head=4, vocab_size=1000, n_positions=1024)
        self.model = AutoModelForCausalLM.from_config(config)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.model(input_ids=batch.ids_BL, labels=batch.ids_BL).loss
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Clock(Callback):
    """Times steps, from the start of one to the start of the next, and says in which our callbacks are to work.

    Of two steps the one is with them and the other without, in a changing order.
    """

    def __init__(self) -> None:
        self.number, self.on, self.since = -1, True, 0.0
        self.seconds: dict[bool, list[float]] = {False: [], True: []}

    def on_train_batch_start(self, *_: Any) -> None:
        now = CLOCK[0]()
        if self.number >= WARMING:
            self.seconds[self.on].append(now - self.since)
        self.number += 1
        self.on = (self.number % 2 == 0) == (self.number // 2 % 2 == 0)
        self.since = CLOCK[0]()


def switched(callback: Callback, clock: Clock, spent: dict[str, list[float]]) -> Callback:
    """The callback, its hooks of a step measured, and left out where the clock says so."""
    for hook in HOOKS:
        if getattr(type(callback), hook) is getattr(Callback, hook):
            continue
        inner, name = getattr(callback, hook), f"{type(callback).__name__}.{hook}"

        def either(*arguments: Any, inner: Any = inner, name: str = name, **more: Any) -> None:
            if clock.on:
                start = CLOCK[0]()
                inner(*arguments, **more)
                if clock.number >= WARMING:
                    spent[name].append(CLOCK[0]() - start)

        setattr(callback, hook, either)
    return callback


def report(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    clock, spent = Clock(), defaultdict[str, list[float]](list)
    seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", devices=options.processes, strategy="ddp" if options.processes > 1 else "auto",
            max_steps=options.steps + WARMING, log_every_n_steps=options.log_every, enable_checkpointing=False,
            enable_model_summary=False, use_distributed_sampler=False, logger=TensorBoardLogger(folder),
            callbacks=[clock, *(switched(kind(), clock, spent) for kind in OURS)],
        )  # fmt: skip
        trainer.fit(Model(options.width), datamodule=Data(options.rows, options.tokens))
    if trainer.global_rank:
        return
    couples = list(zip(clock.seconds[False], clock.seconds[True], strict=False))
    shares = [(one - none) / none for none, one in couples]
    low, _, high = statistics.quantiles(shares, n=4)
    print(f"\n{options.processes} process(es), {len(couples)} pairs of steps")
    print(f"without ours: {1e3 * statistics.median(none for none, _ in couples):8.2f} ms a step")
    print(f"with ours:    {1e3 * statistics.median(one for _, one in couples):8.2f} ms a step")
    print(f"difference:   {100 * statistics.median(shares):+8.2f} % (quartiles {100 * low:+.2f}, {100 * high:+.2f})")
    print("\nmicroseconds a step, median and mean (a step that logs is in the mean)")
    for name, times in sorted(spent.items(), key=lambda item: -sum(item[1])):
        print(f"{name:45} {1e6 * statistics.median(times):9.1f} {1e6 * statistics.mean(times):9.1f}")
    each = (statistics.mean(times) for times in spent.values())
    medians = (statistics.median(times) for times in spent.values())
    print(f"{'all':45} {1e6 * sum(medians):9.1f} {1e6 * sum(each):9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu, where others use the machine too")
    options = parser.parse_args()
    CLOCK[0] = CLOCKS[options.clock]
    if options.processes == 1:
        report(options)
        return
    from two_processes import in_processes

    in_processes(lambda rank: report(options), options.processes)


if __name__ == "__main__":
    main()
