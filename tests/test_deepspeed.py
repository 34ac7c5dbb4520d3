"""Every method under DeepSpeed and DDP on the CPU, in two processes, is what it is in one."""

import json
from pathlib import Path

import pytest
import tiny_edits
import tiny_facts
import torch
from conftest import ARCHITECTURES
from parallel_runs import STRATEGIES, in_processes, runs, told
from safetensors.torch import load_file

from kedit.running.convert import _deepspeeds, convert
from kedit.running.export import export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

END = """
trainer:
  accelerator: cpu
  max_steps: 4
  accumulate_grad_batches: 2
  gradient_clip_val: 1.0
  val_check_interval: 4
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks: []
checkpoint: {every_n_train_steps: 4, save_last: true, save_top_k: 1}
"""
KILM = """
seed_everything: 3
model:
  class_path: kedit.kilm.KilmModule
  init_args:
    backbone: BACKBONE
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003, eps: 1.0e-5}}
data:
  class_path: kedit.kilm.KilmData
  init_args:
    corpus: CORPUS
    row_tokens: 128
    batch_rows: 5
    evaluation: {held_out: 30, validation_mentions: 3, panel: 1, test_mentions: 3}
"""
DISTILL = """
seed_everything: 3
model:
  class_path: kedit.distill.DistillModule
  init_args:
    backbone: {name: BASE}
    lora: LORA
    freeze_embeddings: FREEZE
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003, eps: 1.0e-5}}
data:
  class_path: kedit.distill.DistillData
  init_args:
    source: {class_path: tiny_facts.TinyFacts}
    batch_sentences: 5
    row_tokens: 64
"""


def kilm(folder: Path, corpus: dict[str, str], name: str, source: str = "") -> Path:
    architecture = dict(ARCHITECTURES[name]) | ({"dropout": 0.0} if name == "bart" else {"dropout_rate": 0.0})
    backbone = f"{{name: {source}, architecture: {{dropout: 0.0}}}}" if source else f"{{architecture: {architecture}}}"
    family = "bart" if name == "bart" else "t5"
    return written(folder / f"{name}.yaml", KILM.replace("BACKBONE", backbone).replace("CORPUS", corpus[family]))


def distill(folder: Path, lora: str, freeze: str = "false") -> Path:
    text = DISTILL.replace("LORA", lora).replace("BASE", tiny_facts.base()).replace("FREEZE", freeze)
    return written(folder / "distill.yaml", text)


def recipe(folder: Path, reference: str) -> Path:
    base = tiny_edits.base(folder / "base")
    text = tiny_edits.CONFIG.format(name="x", base=base, reference=reference, workers=0, epochs=1)
    text = text.split("trainer:")[0].replace("{lr: 0.003}", "{lr: 0.003, eps: 1.0e-5}")
    return written(folder / "recipe.yaml", text.replace("batch_edits: 3", "batch_edits: 5"))


def written(path: Path, text: str, end: str = END) -> Path:
    path.write_text(text + end)
    return path


def fits(config: Path, *names: str) -> dict[str, list[str]]:
    return {name: ["fit", "--config", str(config), "--run.name", name, *STRATEGIES[name]] for name in names}


def differences(folder: Path, names: list[str]) -> dict[str, tuple[float, float]]:
    """How far losses and final weights are from those of one process, at most."""
    expected, weights = told(folder, "one")
    found = {}
    for name in names:
        losses, own = told(folder, name)
        assert losses.keys() == expected.keys()
        assert own.keys() == weights.keys()
        loss = max(abs(losses[batch] - expected[batch]) for batch in expected)
        found[name] = loss, max(float((own[key] - weights[key]).abs().max()) for key in weights)
    return found


def check(folder: Path, config: Path, names: list[str]) -> None:
    """Losses, final weights and what is exported are those of one process.

    Adam divides a gradient by its size: with a small epsilon, weights whose gradient is nothing but rounding (the
    biases of BART's keys) would go as far as others, each way. With 1e-5 rounding of 1e-8 moves them by 3e-6 a step.
    """
    runs(folder, 1, fits(config, "one"))
    runs(folder, 2, fits(config, *names))
    for name, (loss, weight) in differences(folder, names).items():
        print(f"max |difference| of {config.stem} {name}: losses {loss:.1e}, weights {weight:.1e}")
        assert loss < 1e-5
        assert weight < 2e-5
    for name in names:
        if "zero" in name:
            check_export(folder, name)


def check_export(folder: Path, name: str) -> None:
    """All that was trained is in what is exported, as it was when training ended."""
    weights = told(folder, name)[1]
    output = folder / f"exported-{name}"
    is_adapter = any("lora_" in key for key in weights)
    export(folder / "checkpoints" / name / "last.ckpt", output, form="adapter" if is_adapter else "merged")
    file = next(file for file in output.iterdir() if file.suffix == ".safetensors")
    exported = load_file(file)
    found = 0
    for key, weight in weights.items():
        own = f"base_model.{key.replace('.default.', '.')}" if is_adapter else key.split(".", 1)[1]
        if own in exported:
            assert torch.equal(exported[own], weight)
            found += weight.numel()
    assert found == sum(weight.numel() for weight in weights.values())


NAMES = ["ddp", "zero-1", "zero-2", "zero-3"]


@pytest.fixture(autouse=True)
def allowed(monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_facts,tiny_edits,parallel_runs,cpu_deepspeed")
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["bart", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "t5-v1.1"))])
def test_kilm_in_two_processes_is_as_in_one(tmp_path, world_corpus, name):
    check(tmp_path, kilm(tmp_path, world_corpus, name), NAMES)


LORA = {"distill": "null", "distill-lora": "{rank: 2}"}


@pytest.mark.parametrize("lora", LORA.values(), ids=LORA)
def test_distillation_in_two_processes_is_as_in_one(tmp_path, lora):
    check(tmp_path, distill(tmp_path, lora), NAMES)


@pytest.mark.slow
def test_a_student_that_writes_cannot_be_dealt_out(tmp_path, capfd):
    config = distill(tmp_path, "null")
    config.write_text(config.read_text().replace("    lora:", "    on_policy: {max_new_tokens: 6}\n    lora:"))
    runs(tmp_path, 2, fits(config, "zero-3"), code=2)
    assert capfd.readouterr().err.count("take stage 2 or trainer.strategy ddp") == 2


@pytest.mark.slow
def test_a_model_from_a_folder_starts_as_in_one_process(tmp_path, world_corpus):
    """Where ZeRO-3 would deal out weights before they are read, the first loss tells."""
    first = kilm(tmp_path, world_corpus, "bart")
    runs(tmp_path, 1, fits(first, "one"))
    export(tmp_path / "checkpoints/one/last.ckpt", tmp_path / "model")
    (tmp_path / "again").mkdir()
    check(tmp_path / "again", kilm(tmp_path / "again", world_corpus, "bart", str(tmp_path / "model")), ["zero-3"])


METHODS = ["kilm", "distill", "distill-lora", "recipe"]


def of_method(folder: Path, corpus: dict[str, str], method: str) -> Path:
    if method == "kilm":
        return kilm(folder, corpus, "bart")
    return recipe(folder, "false") if method == "recipe" else distill(folder, LORA[method])


def results(folder: Path, run: str) -> dict[str, float]:
    """What `test` said, but for how long it took."""
    found = json.loads((folder / "logs" / run / "results.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith(("_seconds", "added_inference_share"))}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_test_says_what_it_says_in_one_process(tmp_path, world_corpus, method):
    """Of weights that are dealt out, too, and of ways of answering that change them for a while."""
    config = of_method(tmp_path, world_corpus, method)
    names = [name for name in NAMES if name != "zero-1"]
    tests = {f"{name}-test": ["test", "--config", str(config), "--run.name", name, "--ckpt_path", "last.ckpt",
                              *STRATEGIES[name]] for name in ("one", *names)}  # fmt: skip
    runs(tmp_path, 1, fits(config, "one") | {"test": tests["one-test"]})
    expected = results(tmp_path, "one")
    runs(tmp_path, 2, fits(config, *names) | {f"{name}-test": tests[f"{name}-test"] for name in names})
    for name in names:
        assert results(tmp_path, name) == pytest.approx(expected, abs=1e-4, nan_ok=True)
    runs(tmp_path, 1, {"fewer": tests["zero-2-test"]})  # weights alone need no conversion
    assert results(tmp_path, "zero-2") == pytest.approx(expected, abs=1e-4, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_not_a_number_on_one_process_stops_both(tmp_path, capfd, stage):
    config = distill(tmp_path, "{rank: 2}")
    arguments = ["fit", "--config", str(config), "--run.name", "bad", *STRATEGIES[f"zero-{stage}"],
                 "--trainer.callbacks+", "parallel_runs.Poison", "--trainer.callbacks.step", "1"]  # fmt: skip
    runs(tmp_path, 2, {"bad": arguments}, code=2)
    assert capfd.readouterr().err.count("the loss of step 2 is not finite: epoch 0, batch 2") == 2
    assert not list((tmp_path / "checkpoints/bad").glob("*.ckpt"))


@pytest.mark.slow
def test_frozen_weights_are_in_what_is_exported(tmp_path):
    """Where a model is trained but for a part; of an adapter's base see `check_export`."""
    check(tmp_path, distill(tmp_path, "null", freeze="true"), NAMES[1:])


@pytest.mark.parametrize("reference", ["false", pytest.param("true", marks=pytest.mark.slow)], ids=["slots", "paper"])
def test_recipe_in_two_processes_is_as_in_one(tmp_path, reference):
    check(tmp_path, recipe(tmp_path, reference), NAMES)


STOP = ["--trainer.callbacks+", "parallel_runs.Stop", "--trainer.callbacks.step", "2"]


def converted(checkpoint: Path) -> None:
    """`kedit convert` in a fork of this process, which need not import DeepSpeed again."""

    def work(rank: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kedit.running.convert._run", lambda source, target: _deepspeeds(str(source), str(target)))
            convert(checkpoint)

    assert in_processes(work, 1) == [0]


def check_resumed(folder: Path, config: Path) -> None:
    """Stopped after two steps of four, and gone on with by another number of processes, to the same end."""
    for world in (1, 2):
        names = [name for name in STRATEGIES if name != "one" and (name, world) != ("ddp", 1)] + ["one"] * (world == 1)
        begun = {f"{name}-{world}": ["fit", "--config", str(config), "--run.name", f"{name}-{world}",
                                     *STRATEGIES[name], *STOP] for name in names}  # fmt: skip
        runs(folder, world, begun)
    for run in (f"zero-{stage}-{world}" for stage in (1, 2, 3) for world in (1, 2)):
        converted(folder / "checkpoints" / run / "last.ckpt")
    runs(folder, 1, fits(config, "one"))
    for world in (1, 2):
        other = 3 - world
        resumed = {}
        for name in STRATEGIES:
            if name == "one" or name == "ddp":
                run, now = ("ddp-2", "one") if world == 1 else ("one-1", "ddp")
            else:
                run, now = f"{name}-{other}", name
            for window in (2, 1):
                resumed[f"{now}-on-{world}-by-{window}"] = (run, now, window)
        for window in (2, 1):
            these = {key: ["fit", "--config", str(config), "--run.name", run, *STRATEGIES[now], "--ckpt_path",
                           f"last{'-universal' * ('zero' in run)}.ckpt", "--trainer.accumulate_grad_batches",
                           str(window), "--checkpoint.every_n_train_steps", "100", "--checkpoint.save_last", "false"]
                     for key, (run, now, own) in resumed.items() if own == window}  # fmt: skip
            runs(folder, world, these)
            for key in these:
                losses, own = told(folder, key)
                # other batches are other sums in KILM, and other neighbours in RECIPE
                then, weights = told(folder, "one" if window == 2 else "one-on-1-by-1")
                weight = max(float((own[name] - weights[name]).abs().max()) for name in weights)
                loss = max(abs(losses[batch] - then[batch]) for batch in losses)
                print(f"max |difference| of {config.stem} resumed {other} -> {world}, {key}: losses {loss:.1e}, "
                      f"weights {weight:.1e}")  # fmt: skip
                assert sorted(losses) == sorted(then)[-len(losses) :]
                assert len(losses) == 2 * window
                assert loss < 1e-5
                assert weight < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, world_corpus, method):
    check_resumed(tmp_path, of_method(tmp_path, world_corpus, method))
