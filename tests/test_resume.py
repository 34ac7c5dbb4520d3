"""A run that is killed with SIGKILL and resumed ends with the very weights of a run that was left alone."""

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
from killed_configs import DISTILL, KILM
from killed_records import differences, state_of
from killed_runs import ALLOW, start

from kedit.cli import main


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
    run = start(folder, "--config", str(folder / "whole.yaml"))
    assert not run.join()
    assert run.exit_codes == [0]

    run = start(folder, "--config", str(folder / "killed.yaml"))
    least, delay = draw.randrange(3, steps - 6), draw.random() * 0.2
    while steps_done(killed) < least and not run.poll():
        time.sleep(0.01)
    time.sleep(delay)
    run.kill()
    assert not run.join()
    assert run.exit_codes == [-signal.SIGKILL]
    reached = steps_done(killed)
    assert 0 < reached < steps

    run = start(folder, "--config", str(folder / "killed.yaml"), "--ckpt_path", "last")
    assert not run.join()
    assert run.exit_codes == [0]
    one, two = (state_of(path / "last.ckpt") for path in (whole, killed))
    # texts that a model writes are not the same on every machine, nor is their number
    assert steps - 6 <= one["last.ckpt"]["global_step"] <= steps
    assert one["last.ckpt"]["optimizer_states"][0]["state"]
    assert not differences(one, two)
    return reached


def kilm(name: str, corpus: str, workers: int, steps: int, row_tokens: int) -> Callable[[str], str]:
    architecture = dict(ARCHITECTURES[name]) | ({"max_position_embeddings": 1024} if name == "bart" else {})
    return lambda run: KILM.format(
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
    monkeypatch.setenv("KEDIT_ALLOW", ALLOW)
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
    monkeypatch.setenv("KEDIT_ALLOW", ALLOW)
    base = tiny_edits.base(tmp_path / "base")

    def config(run: str) -> str:
        return tiny_edits.CONFIG.format(name=run, base=base, reference=reference, workers=workers, epochs=5)

    killed_and_resumed(tmp_path, config, steps=25, seed=workers)


def test_a_checkpoint_of_a_validation_resumes_exactly_under_accumulation(tmp_path, world_corpus, monkeypatch, capsys):
    """Validation, and so saving, waits for the end of an accumulated step."""
    monkeypatch.chdir(tmp_path)
    config = KILM.format(
        name="whole",
        architecture=ARCHITECTURES["bart"],
        corpus=world_corpus["bart"],
        workers=0,
        steps=8,
        row_tokens=128,
    )
    config = config.replace("accumulate_grad_batches: 2", "accumulate_grad_batches: 4")
    config = config.replace("batch_rows: 2", "batch_rows: 4")
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
        (["--data.init_args.batch_rows", "5"], "rows of a step (4, here 5)"),
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
