"""A run that is killed with SIGKILL and resumed ends with the very weights of a run that was left alone."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_edits
import tiny_facts
import torch
from conftest import ARCHITECTURES

import kedit.distill
import kedit.kilm
import kedit.recipe.module
import kedit.running.application  # noqa: F401  or every child that is forked imports it all again
from kedit.cli import main

CONFIG = """
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


def child(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder)
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    os._exit(main(arguments))


def start(folder: Path, *arguments: str) -> multiprocessing.Process:
    """`python -m kedit fit` in a process of its own, forked so that nothing is imported again."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(folder, ["fit", *arguments]))
    process.start()
    return process


def steps_done(run: Path) -> int:
    checkpoints = list(run.glob("*step=*.ckpt"))
    return max((int(path.stem.split("step=")[1].split("-")[0]) for path in checkpoints), default=0)


def weights(run: Path) -> dict:
    return torch.load(run / "last.ckpt", weights_only=True)


def killed_and_resumed(folder: Path, config: Callable[[str], str], steps: int, seed: int) -> int:
    """Run twice, once with kill -9 at a random step; the step that was reached before the kill.

    Args:
        folder: where the runs stand.
        config: text of the configuration of a run of a name.
        steps: of the whole run.
        seed: of where it is killed.
    """
    draw = random.Random(seed)
    for run in ("whole", "killed"):
        (folder / f"{run}.yaml").write_text(config(run))
    whole, killed = folder / "checkpoints" / "whole", folder / "checkpoints" / "killed"
    process = start(folder, "--config", str(folder / "whole.yaml"))
    process.join()
    assert process.exitcode == 0

    process = start(folder, "--config", str(folder / "killed.yaml"))
    least, delay = draw.randrange(3, steps - 6), draw.random() * 0.2
    while steps_done(killed) < least and process.is_alive():
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    reached = steps_done(killed)
    assert 0 < reached < steps

    process = start(folder, "--config", str(folder / "killed.yaml"), "--ckpt_path", "last")
    process.join()
    assert process.exitcode == 0
    one, two = weights(whole), weights(killed)
    # texts that a model writes are not the same on every machine, nor is their number
    assert steps - 6 <= one["global_step"] == two["global_step"] <= steps
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, two)]
    assert moments[0]
    assert moments[0].keys() == moments[1].keys()
    for name in ("exp_avg", "exp_avg_sq"):
        assert all(torch.equal(moments[0][k][name], moments[1][k][name]) for k in moments[0])
    return reached


def kilm(name: str, corpus: str, workers: int, steps: int, row_tokens: int) -> Callable[[str], str]:
    architecture = dict(ARCHITECTURES[name]) | ({"max_position_embeddings": 1024} if name == "bart" else {})
    return lambda run: CONFIG.format(
        name=run, architecture=architecture, corpus=corpus, workers=workers, steps=steps, row_tokens=row_tokens
    )


@pytest.mark.parametrize(("name", "workers"), [("bart", 2), ("t5", 0)])
def test_killed_and_resumed_is_bit_identical(tmp_path, world_corpus, name, workers):
    killed_and_resumed(tmp_path, kilm(name, world_corpus[name], workers, 24, 128), steps=24, seed=workers)


@pytest.mark.parametrize(
    ("lora", "protocol", "regularisation", "epochs", "workers", "steps"),
    [
        ("{rank: 2, dropout: 0.2}", "{}", "{text: 1, alike: 1, swapped: 2, max_new_tokens: 5}", 3, 2, 30),
        ("null", "{}", "{swapped: 3}", 4, 0, 32),
        ("{rank: 2, dropout: 0.2}", "{edits: sequential, passes: 2}", "{text: 3, max_new_tokens: 5}", 1, 0, 24),
        ("null", "{edits: sequential, group: 2, passes: 4}", "{}", 1, 2, 24),
        ("{rank: 2, dropout: 0.2}", "{edits: independent, passes: 8}", "{}", 1, 0, 24),
        ("null", "{reference: true, repeats: 2}", "{}", 1, 0, 24),  # with the model's own dropout
    ],
    ids=["lora-joint", "full-joint", "lora-sequential", "full-sequential", "lora-side-by-side", "full-reference"],
)  # fmt: skip
def test_distillation_killed_and_resumed_is_bit_identical(
    tmp_path, monkeypatch, lora, protocol, regularisation, epochs, workers, steps
):
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_facts")
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    side_by_side = "independent" in protocol
    batch = 1 if side_by_side else 2 if "sequential" in protocol else 3

    def config(run: str) -> str:
        return DISTILL.format(
            name=run, base=tiny_facts.base(), lora=lora, protocol=protocol, regularisation=regularisation,
            batch=batch, epochs=epochs, workers=workers,
        )  # fmt: skip

    killed_and_resumed(tmp_path, config, steps, seed=workers + epochs)
    if epochs == 1 and "edits" in protocol:  # every stage's scores are there, and the same
        whole, killed = (tmp_path / "checkpoints" / run / "edits.json" for run in ("whole", "killed"))
        assert whole.read_text() == killed.read_text()


@pytest.mark.parametrize(("reference", "workers"), [("false", 2), ("true", 0)], ids=["slots", "paper"])
def test_recipe_killed_and_resumed_is_bit_identical(tmp_path, monkeypatch, reference, workers):
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_edits")
    base = tiny_edits.base(tmp_path / "base")

    def config(run: str) -> str:
        return tiny_edits.CONFIG.format(name=run, base=base, reference=reference, workers=workers, epochs=5)

    killed_and_resumed(tmp_path, config, steps=25, seed=workers)


def test_a_checkpoint_of_a_validation_resumes_exactly_under_accumulation(tmp_path, world_corpus, monkeypatch, capsys):
    """Validation, and so saving, waits for the end of an accumulated step."""
    monkeypatch.chdir(tmp_path)
    config = CONFIG.format(
        name="whole",
        architecture=ARCHITECTURES["bart"],
        corpus=world_corpus["bart"],
        workers=0,
        steps=8,
        row_tokens=128,
    )
    config = config.replace("accumulate_grad_batches: 2", "accumulate_grad_batches: 4")
    config = config.replace("every_n_train_steps: 3", "monitor: val/loss, mode: min").replace("top_k: 1", "top_k: -1")
    Path("whole.yaml").write_text(config)
    assert main(["fit", "--config", "whole.yaml"]) == 0
    saved = sorted(Path("checkpoints/whole").glob("*step=3.ckpt"))
    assert len(saved) == 1  # every 11 batches is every 12
    resumed = ["fit", "--config", "whole.yaml", "--run.name", "again", "--ckpt_path", str(saved[0])]
    assert main(resumed) == 0
    one, two = weights(Path("checkpoints/whole")), weights(Path("checkpoints/again"))
    assert one["global_step"] == two["global_step"] == 8  # the end is saved, too
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())

    capsys.readouterr()
    for option, word in (
        (["--data.init_args.batch_rows", "3"], "batches an epoch"),
        (["--seed_everything", "4"], "seed_everything 3"),
    ):
        assert main([*resumed[:3], "--run.name", f"other{option[1]}", *resumed[5:], *option]) == 2
        assert word in capsys.readouterr().err
    assert main(["test", "--config", "checkpoints/whole/config.yaml", "--seed_everything", "4"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_on_the_real_extract(tmp_path, real_data, name, workers):
    """Articles of the 2016 extract, whole, with BART's and a T5-style tokenizer."""
    from kedit.kilm import build_corpus
    from kedit.lm.backbones import load_tokenizer

    tokenizer = str(real_data / "tokenizers" / "roberta")
    if name == "t5":
        extended = load_tokenizer(tokenizer)
        extended.add_tokens([f"<extra_id_{k}>" for k in range(100)], special_tokens=True)
        tokenizer = str(tmp_path / "tokenizer")
        extended.save_pretrained(tokenizer)
    dump = real_data / "wikipedia" / "enwiki-shortened-2016.xml.bz2"
    build_corpus(dump=[dump], tokenizer=tokenizer, output=tmp_path / "corpus", setting="full")
    config = kilm(name, str(tmp_path / "corpus"), workers, steps=15, row_tokens=512)
    reached = killed_and_resumed(tmp_path, config, steps=15, seed=hash((name == "t5", workers)))
    print(f"{name}, {workers} workers: killed after checkpoint {reached}, weights bit-identical at step 15")
