import json
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import PER_EPOCH, ROWS, Data, StopAt, train

from kedit.editing.sources import DataError
from kedit.running.data import BatchLoader, ResumableData, random_state, set_random_state
from kedit.running.last import StepCheckpoint
from kedit.running.position import DUE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def same(one: LightningModule, other: LightningModule) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


CASES = {  # when training stops, how often a checkpoint is written, other arguments of the trainer
    "in the first epoch": (7, 7, {}),
    "in the second epoch": (PER_EPOCH + 5, 1, {}),
    "at the end of an epoch": (PER_EPOCH, PER_EPOCH, {}),
    "after a validation": (8, None, {"val_check_interval": 4}),
    "after the epoch's validation": (PER_EPOCH, None, {}),
    "when accumulating": (9, 3, {"accumulate_grad_batches": 2}),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, case, workers):
    stop, every, arguments = CASES[case]
    whole = train(tmp_path / "whole", workers=workers, every=every, **arguments)
    first = train(tmp_path / "parts", workers=workers, every=every, callbacks=[StopAt(stop)], **arguments)
    checkpoint = tmp_path / "parts" / f"step={stop}.ckpt"
    rest = train(tmp_path / "parts", workers=workers, every=every, resume=checkpoint, **arguments)

    batches = PER_EPOCH * arguments.get("accumulate_grad_batches", 1)
    assert len(whole.seen) == 3 * batches
    assert first.seen + rest.seen == whole.seen  # rows and losses, bit for bit
    assert same(rest, whole)
    for epoch in range(3):
        rows = [row for rows, _ in whole.seen[epoch * batches : (epoch + 1) * batches] for row in rows]
        assert sorted(rows) == list(range(ROWS))


class Judged(Callback):
    """Keeps the step and the loss of each validation."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.losses.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("step", [4, PER_EPOCH])
def test_a_run_that_goes_on_from_before_a_validation_begins_with_it(tmp_path, step, window):
    judged, again = Judged(), Judged()
    arguments = {"every": 4, "val_check_interval": 4 * window, "accumulate_grad_batches": window}
    whole = train(tmp_path / "whole", callbacks=[judged], **arguments)
    checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
    assert torch.load(checkpoint, weights_only=True)[DUE]
    rest = train(tmp_path / "rest", resume=checkpoint, callbacks=[again], **arguments)
    assert rest.seen == whole.seen[step * window :]
    assert again.losses == [one for one in judged.losses if one[0] >= step]  # its random numbers, too
    assert same(rest, whole)


@pytest.mark.parametrize("step", [4, PER_EPOCH])
@pytest.mark.parametrize("settings", [{"val_check_interval": 6}, {"limit_val_batches": 0}], ids=["later", "never"])
def test_a_run_that_validates_at_other_times_goes_on_at_once(tmp_path, step, settings):
    whole = train(tmp_path / "whole", every=4, val_check_interval=4)
    judged = Judged()
    checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
    rest = train(tmp_path / "rest", resume=checkpoint, every=4, callbacks=[judged], **settings)
    assert rest.seen == whole.seen[step:]
    assert step not in [one for one, _ in judged.losses]


@pytest.mark.parametrize(("then", "now"), [(1, 2), (2, 1), (2, 4)])
def test_the_place_in_the_epoch_is_that_of_the_batches_that_are_accumulated_now(tmp_path, then, now):
    train(tmp_path, every=5, accumulate_grad_batches=then, callbacks=[StopAt(5)])
    judged = Judged()
    rest = train(
        tmp_path / "rest", resume=tmp_path / "step=5.ckpt", accumulate_grad_batches=now, callbacks=[judged],
        val_check_interval=2 * now,
    )  # fmt: skip
    assert len(rest.seen) == (3 * PER_EPOCH - 5) * now
    assert [step for step, _ in judged.losses] == list(range(6, 3 * PER_EPOCH + 1, 2))


@pytest.mark.parametrize("options", [{"train_time_interval": timedelta(0)}, {"every_n_train_steps": 2}])
def test_nothing_is_saved_in_the_middle_of_an_optimiser_step(tmp_path, options):
    def saving(folder):
        return StepCheckpoint(folder, "{step}", save_top_k=-1, **options)

    first = train(tmp_path, accumulate_grad_batches=3, callbacks=[saving(tmp_path / "a"), StopAt(4)])
    checkpoint = tmp_path / "a" / "step=4.ckpt"
    train(tmp_path / "rest", resume=checkpoint, accumulate_grad_batches=3, callbacks=[saving(tmp_path / "b")])
    consumed = [torch.load(path, weights_only=True)["Data"]["consumed"] for path in tmp_path.glob("[ab]/*.ckpt")]
    assert len(first.seen) == 12
    assert len(consumed) > 10
    assert {number % 3 for number in consumed} == {0}


def test_training_draws_the_same_numbers_with_and_without_validation(tmp_path):
    with_it = train(tmp_path / "a", val_check_interval=3)
    without = train(tmp_path / "b", limit_val_batches=0)
    assert with_it.seen == without.seen


def test_killed_at_random_steps_and_resumed_it_ends_with_the_same_weights(tmp_path):
    script = Path(__file__).parent / "tiny_training.py"
    whole = train(tmp_path / "whole", every=2)
    folder = tmp_path / "killed"
    folder.mkdir()
    steps = random.Random(4).sample(range(3, 3 * PER_EPOCH - 1), 2)
    for die_at, workers in zip([*sorted(steps), -1], [2, 0, 0], strict=True):
        done = subprocess.run([sys.executable, script, folder, str(die_at), str(workers)], capture_output=True)
        assert done.returncode == (-9 if die_at > 0 else 0), done.stderr.decode()[-2000:]
    final = torch.load(folder / "final.pt", weights_only=True)
    assert all(torch.equal(final[name], value) for name, value in whole.state_dict().items())
    diary = [json.loads(line) for line in (folder / "diary").read_text().splitlines()]
    assert len(diary) > 3 * PER_EPOCH  # the kills cost steps that were done twice, alike
    for step, rows, loss in diary:
        assert (rows, loss) == whole.seen[step - 1]


def test_the_state_loads_with_weights_only_and_brings_back_all_three_generators(tmp_path):
    data = Data()
    data.consumed = 5
    torch.save(data.state_dict(), tmp_path / "state")
    drawn = random.random(), np.random.normal(), torch.rand(3)
    other = Data()
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.consumed == 5
    set_random_state(other._random)
    again = random.random(), np.random.normal(), torch.rand(3)
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])


def test_the_loader_starts_where_training_stands_at_the_first_next_and_draws_nothing():
    data = Data()
    before = random_state()["torch"]
    loader = BatchLoader(data)
    batches = iter(loader)
    data.consumed = PER_EPOCH + PER_EPOCH - 2
    assert [batch.rows for batch in batches] == [data.make_batch(1, k).rows for k in (PER_EPOCH - 2, PER_EPOCH - 1)]
    data.consumed = 2 * PER_EPOCH
    assert next(iter(loader)).rows == data.make_batch(2, 0).rows
    assert torch.equal(before, random_state()["torch"])


def test_a_datamodule_that_makes_no_batches_says_so():
    with pytest.raises(NotImplementedError, match="does not say how many steps"):
        len(ResumableData().train_dataloader())
    with pytest.raises(NotImplementedError, match="does not make"):
        ResumableData().make_batch(0, 0)


@pytest.mark.parametrize("limit", [5, 0.4, 0.999])
@pytest.mark.parametrize("window", [1, 2])
def test_a_limited_epoch_is_the_beginning_of_its_order_also_after_a_stop(tmp_path, limit, window):
    batches = PER_EPOCH * window
    limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    arguments = {"limit_train_batches": limit, "accumulate_grad_batches": window}
    if limited % window:
        with pytest.raises(DataError, match=r"limit_train_batches leaves .* multiple of"):
            train(tmp_path, **arguments)
        return
    whole = train(tmp_path / "whole", every=1, **arguments)
    assert len(whole.seen) == 3 * limited
    step = limited // window + 2
    first = train(tmp_path / "parts", every=1, callbacks=[StopAt(step)], **arguments)
    rest = train(tmp_path / "parts", every=1, resume=tmp_path / "parts" / f"step={step}.ckpt", **arguments)
    assert first.seen + rest.seen == whole.seen
    assert same(rest, whole)
    for epoch in range(3):
        seen = [rows for rows, _ in whole.seen[epoch * limited : (epoch + 1) * limited]]
        data = Data()
        data.trainer = SimpleNamespace(accumulate_grad_batches=window, global_rank=0, world_size=1)
        assert seen == [data.make_batch(epoch, batch).rows for batch in range(limited)]


@pytest.mark.parametrize("window", [1, 2])
def test_an_epoch_that_was_left_is_gone_on_with(tmp_path, window):
    """A run that is told to stop, as by max_time, ends an epoch before its end and saves then."""
    arguments = {"accumulate_grad_batches": window}
    whole = train(tmp_path / "whole", **arguments)
    kept = ModelCheckpoint(tmp_path / "parts", "left-{epoch}", mode="max", save_on_train_epoch_end=True)
    first = train(tmp_path / "parts", callbacks=[StopAt(PER_EPOCH + 5), kept], **arguments)
    assert len(first.seen) == (PER_EPOCH + 5) * window
    rest = train(tmp_path / "parts", resume=tmp_path / "parts" / "left-epoch=1.ckpt", **arguments)
    assert first.seen + rest.seen == whole.seen
    assert same(rest, whole)


def test_a_validation_over_epochs_waits_for_the_end_of_a_step(tmp_path):
    saved = ModelCheckpoint(tmp_path, "{step}", monitor="val/loss", save_top_k=-1)
    arguments = {"accumulate_grad_batches": 2, "val_check_interval": 29, "check_val_every_n_epoch": None}
    train(tmp_path / "run", callbacks=[saved], **arguments)
    for path in tmp_path.glob("step=*.ckpt"):
        assert torch.load(path, weights_only=True)["Data"]["consumed"] % 2 == 0
    assert any(tmp_path.glob("step=*.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"overfit_batches": 1}, "same batches in every epoch"),
        ({"accumulate_grad_batches": 0}, "wanted 1 or more"),
        ({"val_check_interval": "00:00:00:01", "accumulate_grad_batches": 2}, "is a time"),
    ],
)
def test_what_the_order_of_the_data_does_not_allow_is_refused(tmp_path, arguments, words):
    with pytest.raises(DataError, match=words):
        train(tmp_path, **arguments)
