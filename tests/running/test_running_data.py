import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from tiny_training import PER_EPOCH, ROWS, Data, StopAt, train

from kedit.running.data import BatchLoader, ResumableData, random_state, set_random_state

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
