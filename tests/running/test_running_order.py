import numpy as np
import pytest

from kedit.running.order import batch_count, batch_items, epoch_order


def test_an_epoch_holds_every_row_once_and_every_epoch_and_seed_has_its_own_order():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(epoch_order(100, 1, 1), orders[3])


def test_the_order_is_the_same_for_good():
    assert epoch_order(8, 7, 3).tolist() == [4, 2, 7, 0, 5, 3, 1, 6]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_any_number_of_processes_sees_the_same_global_batches(world):
    order = epoch_order(50, 0, 0)
    whole = [set(batch_items(order, batch, 8).tolist()) for batch in range(batch_count(50, 8))]
    for batch, rows in enumerate(whole):
        parts = [batch_items(order, batch, 8, rank, world).tolist() for rank in range(world)]
        assert set().union(*parts) == rows
        assert sum(map(len, parts)) == len(rows)
    assert set().union(*whole) == set(range(50))
    assert [len(rows) for rows in whole] == [8] * 6 + [2]


def test_a_batch_outside_the_epoch_is_refused():
    with pytest.raises(IndexError, match="batch 7 of 7"):
        batch_items(epoch_order(50, 0, 0), 7, 8)
