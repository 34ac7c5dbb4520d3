"""A whole run by the command line: what TensorBoard shows, results, predictions, export, and the export used alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ARCHITECTURES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kedit.cli import main

CONFIG = """
seed_everything: 0
run: {{name: small}}
test_after_fit: true
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
    evaluation: {{held_out: 60, validation_mentions: 8, panel: 3, test_mentions: 16}}
trainer: {{accelerator: cpu, max_steps: 12, val_check_interval: 6, check_val_every_n_epoch: null, log_every_n_steps: 3}}
checkpoint: {{monitor: val/loss/knowledge, mode: min, save_last: true}}
"""


@pytest.fixture(scope="module", params=["bart", "t5"])
def run(request, tmp_path_factory, world_corpus):
    folder = tmp_path_factory.mktemp(f"run-{request.param}")
    config = CONFIG.format(architecture=ARCHITECTURES[request.param], corpus=world_corpus[request.param])
    (folder / "small.yaml").write_text(config)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "--config", "small.yaml"]) == 0
        yield folder, request.param
    finally:
        os.chdir(before)


def test_tensorboard_holds_what_is_promised(run):
    folder, _ = run
    events = EventAccumulator(str(folder / "logs" / "small"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    losses = {"knowledge", "infilled", "copied"}
    assert {"train/loss"} | {f"train/loss/{name}" for name in losses} <= scalars
    assert {"train/learning_rate", "train/gradient_norm", "train/peak_memory_gib"} <= scalars
    assert {"train/target_tokens_per_second", "train/padding_share"} <= scalars
    assert {"val/loss", "val/loss/knowledge", "val/description_exact_match", "val/description_f1"} <= scalars
    assert [event.step for event in events.Scalars("train/loss")] == [2, 5, 8, 11]
    assert all(0 < event.value < 0.3 for event in events.Scalars("train/padding_share"))
    assert all(event.value > 100 for event in events.Scalars("train/target_tokens_per_second"))
    panel = events.Tensors("descriptions/text_summary")
    assert [event.step for event in panel] == [6, 12]
    texts = [event.tensor_proto.string_val[0].decode() for event in panel]
    assert all(text.startswith("| context | generated | gold |") and text.count("\n") == 4 for text in texts)
    first, second = ([row.split("|")[1::2] for row in text.split("\n")[2:]] for text in texts)
    assert first == second  # the same mentions with the same gold
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_results_are_flat_numbers(run):
    results = json.loads((run[0] / "logs/small/results.json").read_text())
    assert all(key.startswith("test/") and isinstance(value, float) for key, value in results.items())
    wanted = {f"test/description_{m}/{s}" for m in ("exact_match", "f1", "rouge_l") for s in ("seen", "unseen")}
    assert wanted | {"test/disambiguation_accuracy", "test/infilling_loss"} <= set(results)


def test_test_and_predict_take_the_runs_own_configuration(run, capsys):
    folder, _ = run
    before = json.loads((folder / "logs/small/results.json").read_text())
    assert main(["test", "--config", "checkpoints/small/config.yaml"]) == 0
    assert json.loads((folder / "logs/small/results.json").read_text()) == pytest.approx(before, abs=1e-6)
    (folder / "asked.jsonl").write_text('{"text": "Velmar is a town.", "mention": "Velmar"}\n' * 3)
    arguments = ["--config", "checkpoints/small/config.yaml", "--data.init_args.predict", "asked.jsonl"]
    assert main(["predict", *arguments]) == 0
    lines = (folder / "logs/small/predictions.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert {"text", "mention", "title", "description"} <= set(json.loads(lines[0]))


def test_the_export_loads_without_kedit_as_its_card_says(run):
    folder, _ = run
    assert main(["export", "--checkpoint", "checkpoints/small", "--output", "exported"]) == 0
    card = (folder / "exported" / "README.md").read_text()
    blocks = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    alone = next(block for block in blocks if "AutoModelForSeq2SeqLM" in block)
    program = alone.replace('"FOLDER"', '"exported"') + "\nimport sys\nassert 'kedit' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    # the words behind <ent_desc>, or behind T5's first sentinel, are those that Infiller says
    from kedit.kilm import Infiller

    infiller = Infiller.from_pretrained("exported", device="cpu")
    said = infiller.describe(["The Joker was played by Joaquin Phoenix."], ["Joker"], most=40)[0]
    written = done.stdout.split("<ent_desc>")[-1].split("<extra_id_0>")[-1]
    assert written.split("<sep>")[0].strip().startswith(said.title[:20])
