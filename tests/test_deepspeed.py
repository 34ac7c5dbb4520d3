"""A real ZeRO checkpoint folder, written by Lightning and DeepSpeed on the CPU, exports like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ARCHITECTURES

CONFIG = """
seed_everything: 0
run: {{name: zero}}
model:
  class_path: kedit.kilm.KilmModule
  init_args:
    backbone: {{architecture: {architecture}}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.003}}}}
data:
  class_path: kedit.kilm.KilmData
  init_args:
    corpus: {corpus}
    row_tokens: 128
    batch_rows: 4
    evaluation: {{held_out: 60, validation_mentions: 4, panel: 1, test_mentions: 4}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 6
  val_check_interval: 3
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  strategy: {{class_path: cpu_deepspeed.CPUDeepSpeed, init_args: {{stage: {stage}}}}}
checkpoint: {{save_last: true}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_zero_checkpoint_exports(tmp_path, world_corpus, stage):
    config = CONFIG.format(architecture=ARCHITECTURES["bart"], corpus=world_corpus["bart"], stage=stage)
    (tmp_path / "zero.yaml").write_text(config)
    environment = os.environ | {"KEDIT_ALLOW": "cpu_deepspeed", "PYTHONPATH": str(Path(__file__).parent)}

    def kedit(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "kedit", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    kedit("fit", "--config", "zero.yaml")
    folders = [path for path in (tmp_path / "checkpoints/zero").glob("*.ckpt") if path.is_dir()]
    assert folders
    kedit("export", "--checkpoint", str(folders[0]), "--output", "exported")
    from kedit.kilm import Infiller

    assert Infiller.from_pretrained(tmp_path / "exported", device="cpu").describe(["Velmar is a town."], ["Velmar"])
    assert json.loads((tmp_path / "exported/config.json").read_text())["model_type"] == "bart"
