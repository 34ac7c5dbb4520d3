"""Each method killed at exact moments, in one process and in two, and gone on with: a part of speed/kill_grid.py."""

import random

import cpu_deepspeed  # noqa: F401  or every child that is forked imports DeepSpeed
import pytest
from killed_configs import distill, kilm, recipe, runs_of
from killed_runs import Cell

CELLS = [
    ("recipe", "1 process", 2, "in save", 2),
    ("kilm", "DDP", 0, "in validation", 1),
    ("distill", "ZeRO-2", 2, "mid-accumulation", 1),
]


@pytest.mark.parametrize(("method", "processes", "workers", "moment", "kills"), CELLS)
def test_killed_and_resumed_is_the_run_that_was_left_alone(
    tmp_path, world_corpus, method, processes, workers, moment, kills
):
    made = {"kilm": lambda: kilm(world_corpus["bart"]), "distill": distill, "recipe": lambda: recipe(tmp_path / "base")}
    cell = Cell(tmp_path, runs_of(made[method](), processes, workers), 1 if processes == "1 process" else 2)
    whole = cell.whole()
    outcome = cell.killed("killed", cell.draw(whole, moment, kills, random.Random(1)), whole)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.kills
    assert outcome.runs == len(outcome.kills) + 1
