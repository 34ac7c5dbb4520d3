"""Every row comes once a pass; stages, edits side by side, and the reference."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from kedit.distill.plan import Plan, Protocol
from kedit.running.order import epoch_order

ROWS_OF = [[0, 1, 2], [3, 4, 5, 6, 7], [8], [], [9, 10]]


def plan(side_by_side=False, batch=4, rows_of=ROWS_OF, seed=3, **protocol):
    return Plan(rows_of, Protocol(**protocol), batch, seed, side_by_side)


def test_joint_edits_are_one_stage_and_every_row_comes_once_a_pass():
    made = plan(passes=2)
    assert len(made.stages) == 1
    assert made.stages[0].facts == (0, 1, 2, 4)  # fact 3 has no row
    assert made.steps == 2 * 3
    orders = []
    for epoch in range(2):
        for turn in range(2):
            seen = [made.rows(epoch, 3 * turn + step).tolist() for step in range(3)]
            assert [len(rows) for rows in seen] == [4, 4, 3]
            orders.append(tuple(chain(*seen)))
            assert sorted(orders[-1]) == list(range(11))
    assert len(set(orders)) == 4  # each pass in another order
    assert tuple(chain(*(plan(seed=4).rows(0, step).tolist() for step in range(3)))) != orders[0]


def test_a_batch_is_a_function_of_its_number_alone():
    forwards, backwards = plan(edits="sequential"), plan(edits="sequential")
    numbers = range(forwards.steps)
    first = [forwards.rows(1, number).tolist() for number in numbers]
    assert first == [backwards.rows(1, number).tolist() for number in reversed(numbers)][::-1]


@pytest.mark.parametrize("edits", ["independent", "sequential"])
def test_stages_hold_their_own_facts_only(edits):
    made = plan(edits=edits, group=2, passes=2)
    assert [stage.facts for stage in made.stages] == [(0, 1), (2, 4)]
    assert [(stage.first, stage.steps) for stage in made.stages] == [(0, 4), (4, 2)]
    assert made.steps == 6
    for number, stage in enumerate(made.stages):
        wanted = Counter({row: 2 for fact in stage.facts for row in ROWS_OF[fact]})
        mine = [batch for batch in range(made.steps) if made.stage_of(batch) == number]
        assert mine == list(range(stage.first, stage.first + stage.steps))
        assert Counter(row for batch in mine for row in made.rows(0, batch).tolist()) == wanted


def test_a_stage_has_one_fact_unless_told_otherwise():
    assert [stage.facts for stage in plan(edits="sequential").stages] == [(0,), (1,), (2,), (4,)]
    assert [stage.facts for stage in plan(edits="independent").stages] == [(0,), (1,), (2,), (4,)]
    alike = [[0, 1], [2, 3], [], [4, 5]]
    assert [stage.facts for stage in plan(True, rows_of=alike, edits="independent").stages] == [(0, 1, 3)]
    assert len(plan(edits="sequential", group=100).stages) == 1


def test_side_by_side_are_facts_of_one_size_so_that_each_has_the_batches_that_it_has_alone():
    rows_of = [[0, 1, 2], [3], [4, 5, 6], [], [7, 8, 9], [10]]
    made = plan(True, edits="independent", batch=2, passes=2, rows_of=rows_of)
    assert [stage.facts for stage in made.stages] == [(1, 5), (0, 2, 4)]
    for stage in made.stages:
        for place, fact in enumerate(stage.facts):
            alone = plan(True, edits="independent", batch=2, passes=2, rows_of=[rows_of[fact]])
            assert alone.steps == stage.steps
            for step in range(alone.steps):
                assert made.rows(0, stage.first + step)[place].tolist() == alone.rows(0, step)[0].tolist()
    assert [stage.facts for stage in plan(True, edits="independent", group=2, rows_of=rows_of).stages] == [
        (1, 5), (0, 2), (4,)
    ]  # fmt: skip


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_fact_has_the_order_that_it_has_in_a_run_of_its_own(side_by_side):
    rows_of = [list(range(first, first + 8)) for first in (0, 8, 16)]
    many = plan(side_by_side, edits="independent", rows_of=rows_of, batch=4)
    alone = plan(side_by_side, edits="independent", rows_of=rows_of[1:2], batch=4)
    if side_by_side:
        assert [many.rows(1, k)[1].tolist() for k in range(2)] == [alone.rows(1, k)[0].tolist() for k in range(2)]
    else:
        assert [many.rows(1, k + 2).tolist() for k in range(2)] == [alone.rows(1, k).tolist() for k in range(2)]


@pytest.mark.parametrize("side_by_side", [False, True])
def test_regularising_rows_take_turns_from_pass_to_pass(side_by_side):
    protocol = Protocol(edits="independent", group=2, passes=2)
    kept_of = [list(range(20, 27)), list(range(30, 40))]
    made = Plan([[0, 1], [2, 3, 4]], protocol, 3, 3, side_by_side, kept_of, ratio=1.5)
    assert made.taken_of == [3, 4]
    read = Counter()
    for epoch in range(3):
        for turn in range(2):
            rows = [
                made.rows(epoch, stage.first + turn * (stage.steps // 2) + step).reshape(-1).tolist()
                for stage in made.stages
                for step in range(stage.steps // 2)
            ]
            seen = set(chain(*rows))
            assert {0, 1, 2, 3, 4} <= seen  # what is to be learned, in every pass
            assert [len(seen & set(kept)) for kept in kept_of] == [3, 4]
            read.update(seen - set(range(5)))
    for kept in kept_of:  # all of them, evenly
        counts = [read[row] for row in kept]
        assert min(counts) >= 2
        assert max(counts) - min(counts) <= 1
    assert Plan([[0]], Protocol(), 3, 3, False, [[5, 6]], ratio=9.0).taken_of == [2]


def test_the_reference_takes_each_sentence_a_few_times_running():
    made = plan(reference=True, repeats=3, edits="independent", group=2, passes=2)
    assert made.steps == 2 * 3 * (8 + 3)
    rows = [made.rows(0, batch).tolist() for batch in range(made.steps)]
    assert all(len(row) == 1 for row in rows)
    taken = [rows[start][0] for start in range(0, len(rows), 3)]
    assert rows == [[row] for row in taken for _ in range(3)]
    for first, rows_there in ((0, range(8)), (16, (8, 9, 10))):
        size = len(rows_there)
        for turn in range(2):
            assert sorted(taken[first + turn * size : first + (turn + 1) * size]) == sorted(rows_there)
    assert taken[:8] == np.arange(8)[epoch_order(8, 3, 0)].tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"group": 0}, "group is 0"), ({"passes": 0}, "passes is 0"), ({"repeats": -1}, "repeats is -1"),
     ({"edits": "joint", "group": 3}, "joint edits are one group")],
)  # fmt: skip
def test_a_protocol_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Protocol(**options)
