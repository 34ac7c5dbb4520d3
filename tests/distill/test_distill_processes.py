"""Edits in stages, under two processes: sentences and probes are dealt out, and the scores are those of one process."""

import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import tiny_facts
import torch

from kedit.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "running"))
from two_processes import in_processes

CONFIG = """
seed_everything: 3
run: {{name: {name}}}
model:
  class_path: kedit.distill.DistillModule
  init_args:
    backbone: {{name: {base}}}
    lora: {lora}
    on_policy: {on_policy}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.003, eps: 1.0e-5}}}}
data:
  class_path: kedit.distill.DistillData
  init_args:
    source: {{class_path: tiny_facts.TinyFacts}}
    protocol: {protocol}
    batch_sentences: {batch}
    row_tokens: 64
trainer: {{accelerator: cpu, devices: {devices}, strategy: {strategy}, max_epochs: 1, logger: false,
           enable_progress_bar: false, num_sanity_val_steps: 0}}
checkpoint: {{save_last: true}}
"""


def run(folder: Path, name: str, world: int, **settings: str) -> Path:
    """Train in so many processes; the folder of its checkpoints."""
    config = CONFIG.format(
        name=name, base=tiny_facts.base(), devices=world, strategy="auto" if world == 1 else "ddp",
        **{"lora": "null", "on_policy": "null", "batch": "2", "protocol": "{}"} | settings,
    )  # fmt: skip
    Path(f"{name}.yaml").write_text(config)

    def work(rank: int) -> None:
        os.environ["KEDIT_CACHE"] = str(folder / name)  # nobody finds what another run has computed
        torch.set_num_threads(1)
        warnings.filterwarnings("error", message=".*sync_dist.*")  # what is logged is equal on all processes
        if code := main(["fit", "--config", f"{name}.yaml"]):
            os._exit(code)

    assert in_processes(work, world) == [0] * world
    return folder / "checkpoints" / name


@pytest.mark.parametrize(
    ("lora", "protocol"),
    [
        ("{rank: 2}", "{edits: sequential, passes: 2}"),
        ("null", "{edits: sequential, group: 2, passes: 2}"),
        ("{rank: 2}", "{edits: independent, passes: 4}"),
    ],
    ids=["lora-sequential", "full-sequential", "side-by-side"],
)
def test_stages_of_two_processes_are_those_of_one(tmp_path, monkeypatch, lora, protocol):
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_facts")
    monkeypatch.chdir(tmp_path)
    one, two = (
        json.loads((run(tmp_path, name, world, lora=lora, protocol=protocol) / "edits.json").read_text())
        for name, world in (("one", 1), ("two", 2))
    )
    assert one.keys() == two.keys()
    for stage, edits in one.items():
        for mine, other in zip(edits, two[stage], strict=True):
            assert mine["facts"] == other["facts"]
            assert mine["target"] == pytest.approx(other["target"], rel=1e-4)
            assert mine["specificity"].keys() == other["specificity"].keys()
            for name, scores in mine["specificity"].items():
                assert scores == pytest.approx(other["specificity"][name], rel=1e-4)


@pytest.mark.parametrize("batch", [3, 1], ids=["dealt out unevenly", "one process has none"])
def test_two_processes_that_write_their_own_sentences_learn_what_one_does(tmp_path, monkeypatch, batch):
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_facts")
    monkeypatch.chdir(tmp_path)
    on_policy = "{max_new_tokens: 6}"
    one, two = (
        torch.load(run(tmp_path, name, world, on_policy=on_policy, batch=str(batch)) / "last.ckpt", weights_only=True)
        for name, world in (("one", 1), ("two", 2))
    )
    assert one["global_step"] == two["global_step"] > 2
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=2e-5, msg=name)
