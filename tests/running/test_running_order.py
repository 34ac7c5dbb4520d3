from itertools import chain

import numpy as np
import pytest

from kedit.running.order import Share, epoch_order, step_count, step_items


def test_an_epoch_holds_every_row_once_and_every_epoch_and_seed_has_its_own_order():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(epoch_order(100, 1, 1), orders[3])


def test_the_order_is_the_same_for_good():
    assert epoch_order(8, 7, 3).tolist() == [4, 2, 7, 0, 5, 3, 1, 6]


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_any_number_of_processes_and_accumulated_batches_sees_the_same_steps(world, batches):
    order = epoch_order(50, 0, 0)
    whole = [step_items(order, step, 8) for step in range(step_count(50, 8))]
    for step, rows in enumerate(whole):
        shares = [Share(step, batch, batches, rank, world) for batch in range(batches) for rank in range(world)]
        parts = [share.own(rows).tolist() for share in shares]
        assert sorted(chain(*parts)) == sorted(rows.tolist())
        sizes = [len(share.group(rows)) for share in shares[::world]]
        assert max(sizes) - min(sizes) <= 1
        assert sum(share.weight(rows) for share in shares[::world]) == pytest.approx(batches)
    assert set(np.concatenate(whole).tolist()) == set(range(50))
    assert [len(rows) for rows in whole] == [8] * 6 + [2]


def test_batches_of_a_step_hold_neighbours():
    rows = np.arange(12)
    assert Share(0, 1, 3, 0, 2).group(rows).tolist() == [4, 5, 6, 7]
    assert Share(0, 1, 3, 1, 2).own(rows).tolist() == [5, 7]


def test_a_step_outside_the_epoch_is_refused():
    with pytest.raises(IndexError, match="step 7 of 7"):
        step_items(epoch_order(50, 0, 0), 7, 8)
