"""Configurations of tiny runs of each method that would notice any difference: distinct shuffled rows, dropout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_edits
import tiny_facts
import yaml
from conftest import BART

KILM = """
seed_everything: 3
run: {{name: {name}}}
model:
  class_path: kedit.kilm.KilmModule
  init_args:
    backbone: {{architecture: {architecture}}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.001}}}}
    schedule: {{warmup: 0.1}}
data:
  class_path: kedit.kilm.KilmData
  init_args:
    corpus: {corpus}
    row_tokens: {row_tokens}
    batch_rows: 2
    num_workers: {workers}
    evaluation: {{held_out: 30, validation_mentions: 4, panel: 1}}
trainer:
  accelerator: cpu
  max_steps: {steps}
  accumulate_grad_batches: 2
  val_check_interval: 11
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  log_every_n_steps: 1
checkpoint: {{every_n_train_steps: 3, save_last: true, save_top_k: 1}}
"""

DISTILL = """
seed_everything: 3
run: {{name: {name}}}
model:
  class_path: kedit.distill.DistillModule
  init_args:
    backbone: {{name: {base}}}
    lora: {lora}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.003}}}}
    schedule: {{shape: cosine}}
data:
  class_path: kedit.distill.DistillData
  init_args:
    source: {{class_path: tiny_facts.TinyFacts}}
    protocol: {protocol}
    regularisation: {regularisation}
    batch_sentences: {batch}
    row_tokens: 64
    num_workers: {workers}
trainer:
  accelerator: cpu
  max_epochs: {epochs}
  val_check_interval: 5
  num_sanity_val_steps: 0
  log_every_n_steps: 1
checkpoint: {{every_n_train_steps: 3, save_last: true, save_top_k: 1}}
"""

STRATEGIES: dict[str, dict[str, Any]] = {
    "1 process": {},
    "DDP": {"strategy": "ddp", "devices": 2},
    "ZeRO-2": {
        "strategy": {"class_path": "cpu_deepspeed.CPUDeepSpeed", "init_args": {"stage": 2}},
        "devices": 2,
    },
}


def changed(text: str, **parts: dict[str, Any]) -> str:
    """A configuration with keys set, or left out where the value is None: changed(text, trainer={"devices": 2})."""
    config = yaml.safe_load(text)
    for part, values in parts.items():
        at = config
        for name in part.split("__"):
            at = at[name]
        at.update(values)
        for name in [name for name, value in values.items() if value is None]:
            del at[name]
    return yaml.safe_dump(config, sort_keys=False)


def recorded(text: str, processes: str, **trainer: Any) -> str:
    """A configuration that accumulates, whose run is recorded, under one of `STRATEGIES`."""
    more = {"accumulate_grad_batches": 2, "callbacks": [{"class_path": "kill_recorder.Recorder"}]}
    return changed(text, trainer=more | {"enable_progress_bar": False} | STRATEGIES[processes] | trainer)


def kilm(corpus: str) -> str:
    text = KILM.format(name="{name}", architecture=BART, corpus=corpus, workers=0, steps=-1, row_tokens=256)
    text = changed(text, trainer={"max_epochs": 2, "val_check_interval": 5, "check_val_every_n_epoch": 1})
    return changed(text, data__init_args={"batch_rows": 20}, checkpoint={"every_n_train_steps": 2})


def distill() -> str:
    text = DISTILL.format(
        name="{name}", base=tiny_facts.base(), lora="{rank: 2, dropout: 0.2}", protocol="{}",
        regularisation="{text: 1, alike: 1, max_new_tokens: 5}", batch=5, epochs=3, workers=0,
    )  # fmt: skip
    return changed(text, trainer={"val_check_interval": 4}, checkpoint={"every_n_train_steps": 2})


def recipe(folder: Path) -> str:
    text = tiny_edits.CONFIG.format(name="{name}", base=tiny_edits.base(folder), reference="false", workers=0, epochs=3)
    return changed(text, data__init_args={"batch_edits": 4}, checkpoint={"every_n_train_steps": 2})


def runs_of(text: str, processes: str, workers: int) -> Callable[[str], str]:
    """The configuration of a recorded run of any name."""
    text = changed(recorded(text, processes), data__init_args={"num_workers": workers})
    return lambda run: changed(text, run={"name": run})
