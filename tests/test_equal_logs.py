"""What KILM's validation and test in two processes log is equal on both, so that Lightning has nothing to warn of."""

import os
import sys
import warnings
from pathlib import Path

import torch
from killed_configs import STRATEGIES, changed, kilm

from kedit.cli import main

sys.path.append(str(Path(__file__).parent / "running"))
from two_processes import in_processes

SHORT = {"num_sanity_val_steps": 1, "max_steps": 1, "limit_val_batches": 1, "limit_test_batches": 2}


def test_nobody_is_told_to_set_sync_dist(tmp_path, world_corpus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = SHORT | {"accelerator": "cpu", "logger": False} | STRATEGIES["DDP"]
    Path("run.yaml").write_text(changed(kilm(world_corpus["bart"]), run={"name": "run"}, trainer=more))

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        warnings.filterwarnings("error", message=".*sync_dist.*")
        if code := main(["fit", "--config", "run.yaml", "--test_after_fit", "true"]):
            os._exit(code)

    assert in_processes(work) == [0, 0]
