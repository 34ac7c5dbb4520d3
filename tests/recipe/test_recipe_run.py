"""A whole run by the command line: fit, test, and what stands in its folders afterwards."""

import json

import pytest
import tiny_edits
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModel, AutoTokenizer

from kedit.cli import main
from kedit.editing.edits import Edit
from kedit.recipe import RecipeEditor


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_edits.base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def fitted(tmp_path, monkeypatch, base):
    """Runs `fit` and `test` in a folder of its own; gives the run's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_edits")

    def run(name: str = "one", *options: str, reference: bool = False) -> dict:
        config = tiny_edits.CONFIG.format(name=name, base=base, reference=str(reference).lower(), workers=0, epochs=2)
        (tmp_path / f"{name}.yaml").write_text(config)
        assert main(["fit", "--config", f"{name}.yaml", "--test_after_fit", "true", *options]) == 0
        results = tmp_path / "logs" / name / "results.json"
        return json.loads(results.read_text()) if results.exists() else {}

    return run


def test_the_results_are_those_that_were_promised(fitted, tmp_path, capsys):
    rivals = "[none, text_prefix, finetune, lora]"
    results = fitted(
        "one", "--data.init_args.evaluation.rivals", rivals, "--data.init_args.evaluation.rival_edits", "3"
    )
    for aspect in ("reliability", "generality", "locality"):
        for kind in ("free", "forced"):
            assert 0 <= results[f"test/{aspect}/{kind}"] <= 1
            assert results[f"test/{aspect}/{kind}_ci_low"] <= results[f"test/{aspect}/{kind}"]
    assert results["test/edits"] == 8
    assert results["test/edit_seconds"] > 0
    assert 0 <= results["test/false_activation_rate"] <= 1
    assert "test/added_inference_share" in results
    assert {f"test/{rival}/edits" for rival in ("none", "text_prefix", "finetune", "lora")} <= results.keys()
    assert results["test/finetune/edits"] == 3
    assert results["test/none/edits"] == 8
    assert results["test/none/locality/free"] == results["test/none/locality/forced"] == 1
    said = capsys.readouterr().out
    assert "after 8 edits" in said
    board = EventAccumulator(str(tmp_path / "logs" / "one")).Reload().Tags()
    assert {"train/loss/finding/own", "train/loss/reliability", "train/loss/locality", "train/gate/recall",
            "val/score"} <= set(board["scalars"])  # fmt: skip
    assert {"similarity/own", "similarity/best_other", "similarity/sentinel"} <= set(board["histograms"])
    assert {"lifelong/recipe", "lifelong/none", "lifelong/text_prefix"} <= set(board["images"])

    # the language model is in no checkpoint, and all that is there loads without pickles
    state = torch.load(tmp_path / "checkpoints" / "one" / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all(name.startswith("networks.") for name in state)

    # the run is of use, and an edit outlives the process that made it
    with RecipeEditor.from_run("one") as editor:
        editor.edit([Edit("x", "Maro Tellin was born in", "Korin")])
    with RecipeEditor.from_run("one") as editor:
        assert editor.decide(["Maro Tellin was born in"])[0].edit.edit.target == "Korin"


def test_the_paper_s_networks_run_too(fitted):
    results = fitted("paper", reference=True)
    assert results["test/edits"] == 8


def test_a_pretrained_encoder_learns_with_its_own_dropout(fitted, tmp_path, base, recwarn):
    tokenizer = AutoTokenizer.from_pretrained(base)
    trunk = AutoModel.from_config(
        AutoConfig.for_model("roberta", vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                             num_attention_heads=2, intermediate_size=16, max_position_embeddings=66)
    )  # fmt: skip
    for part in (tokenizer, trunk):
        part.save_pretrained(tmp_path / "trunk")
    fitted("one", "--model.init_args.trunk", json.dumps({"name": str(tmp_path / "trunk"), "architecture": None}),
           "--test_after_fit", "false", "--trainer.max_epochs", "1")  # fmt: skip
    assert not [one for one in recwarn if "eval mode" in str(one.message)]


def test_a_tested_run_gives_the_same_again_with_the_same_networks(fitted, tmp_path, capsys):
    first = fitted()
    stricter = ["--model.init_args.strictness", "3"]  # would fit, and find other edits
    assert main(["test", "--config", "checkpoints/one/config.yaml", *stricter]) == 2
    assert "trained with model.strictness 40.0, this configuration has 3.0" in capsys.readouterr().err
    assert main(["test", "--config", "checkpoints/one/config.yaml"]) == 0
    again = json.loads((tmp_path / "logs" / "one" / "results.json").read_text())
    timed = ("edit_seconds", "added_inference_share")
    assert {k: v for k, v in first.items() if not k.endswith(timed)} == {
        k: v for k, v in again.items() if not k.endswith(timed)
    }


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--data.init_args.evaluation.validation_edits", "50"], "16 edits, of which 50 are kept"),
        (["--data.init_args.evaluation.rate", "1.5"], "rate is 1.5"),
        (["--data.init_args.batch_edits", "0"], "batch_edits is 0"),
        (["--model.init_args.slots", "0"], "slots is 0"),
        (["--model.init_args.tokens", "0"], "tokens is 0"),
        (["--model.init_args.margin", "-1"], "margin is -1"),
        (["--model.init_args.weights.finding", "-1"], "weights are"),
        (["--model.init_args.trunk_share", "-1"], "trunk_share is -1"),
        (["--model.init_args.strictness", "-1"], "strictness is -1"),
    ],
)
def test_bad_settings_are_told_in_a_line(tmp_path, monkeypatch, capsys, base, option, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_edits")
    (tmp_path / "a.yaml").write_text(
        tiny_edits.CONFIG.format(name="a", base=base, reference="false", workers=0, epochs=1)
    )
    assert main(["fit", "--config", "a.yaml", *option]) == 2
    error = capsys.readouterr().err
    assert words in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("python -m kedit fit: error:")


def test_one_edit_is_a_batch_too(fitted):
    assert fitted("single", "--data.init_args.batch_edits", "1", "--trainer.max_steps", "2")["test/edits"] == 8
