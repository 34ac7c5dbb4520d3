"""Export of tiny models with random weights, read back by transformers alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from kedit.editing.sources import DataError
from kedit.lm.backbones import save_skeleton
from kedit.running.export import export

SMALL = {
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    "t5": {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 16, "decoder_start_token_id": 0},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def a_run(folder: Path, kind: str = "bart", *, untie: bool = False):
    """A run's folder with a checkpoint, and the model in it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=7, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SMALL[kind])
    if untie:
        config.tie_word_embeddings = False
    builder = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = builder.from_config(config).eval()
    save_skeleton(model, tokenizer(), folder / "backbone")
    state = {"state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}}
    state["state_dict"]["other.weight"] = torch.zeros(2)
    torch.save(state | {"hyper_parameters": {"_class_path": "kedit.kilm.KilmModule"}}, folder / "last.ckpt")
    return model


@pytest.mark.parametrize(("kind", "untie"), [("bart", False), ("t5", False), ("t5", True), ("gpt2", False)])
def test_an_export_computes_what_the_model_computed(tmp_path, kind, untie, capsys):
    model = a_run(tmp_path / "checkpoints" / "run", kind, untie=untie)
    output = export(tmp_path / "checkpoints" / "run", tmp_path / "out" / "model")
    assert "MiB in" in capsys.readouterr().out
    builder = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    read = builder.from_pretrained(output).eval()
    ids = AutoTokenizer.from_pretrained(output)("a b c", return_tensors="pt")["input_ids"]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids, **more).logits, model(input_ids=ids, **more).logits)
    assert (output / "model.safetensors").is_file()
    assert not list(output.parent.glob(".model*"))


def test_the_card_says_where_the_model_comes_from(tmp_path):
    folder = tmp_path / "checkpoints" / "quick-1"
    a_run(folder)
    (folder / "config.yaml").write_text(
        "model: {class_path: kedit.kilm.Written, init_args: {backbone: {name: facebook/bart-base}}}\n"
        "run: {logs: logs}\n"
    )
    (folder / "data.json").write_text(json.dumps({"documents": 12, "skipped": {"empty": 1}}))
    (tmp_path / "logs" / "quick-1").mkdir(parents=True)
    (tmp_path / "logs" / "quick-1" / "results.json").write_text('{"test/description_f1": 0.75}')
    card = (export(folder, tmp_path / "out") / "README.md").read_text()
    for words in (
        "base_model: facebook/bart-base",
        "trained by `kedit.kilm.Written` of kedit;",
        "| documents | 12 |",
        "| test/description_f1 | 0.7500 |",
        "CC BY-SA 4.0",
        'AutoModelForSeq2SeqLM.from_pretrained("this folder")',
        "last.ckpt",
    ):
        assert words in card
    (folder / "backbone" / "usage.md").write_text("Ask it.")
    assert "Ask it." in (export(folder / "last.ckpt", tmp_path / "out", dtype="bfloat16") / "README.md").read_text()
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_a_folder_that_is_no_export_is_left_alone(tmp_path):
    a_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    export(tmp_path / "run", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not empty and no earlier export"):
        export(tmp_path / "run", tmp_path / "mine")
    with pytest.raises(DataError, match="not empty and no earlier export"):
        export(tmp_path / "run", tmp_path / "mine" / "thesis.tex")


def test_what_cannot_be_exported_is_named(tmp_path):
    a_run(tmp_path / "run")
    a_run(tmp_path / "other", "t5")
    (tmp_path / "run" / "last.ckpt").write_bytes((tmp_path / "other" / "last.ckpt").read_bytes())
    with pytest.raises(DataError) as told:
        export(tmp_path / "run" / "last.ckpt", tmp_path / "out")
    for words in ("kedit.kilm.KilmModule", "BartForConditionalGeneration", "is missing", "and ", "more"):
        assert words in str(told.value)
    assert not (tmp_path / "out").exists()

    (tmp_path / "other" / "half.ckpt").write_bytes((tmp_path / "other" / "last.ckpt").read_bytes()[:500])
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "other" / "foreign.ckpt")
    torch.save({"state_dict": {"model.x": torch.zeros(1)}}, tmp_path / "alone.ckpt")
    for path, words in [
        ("nowhere", "there is no such file"),
        ("other/half.ckpt", "is incomplete: cut off"),
        ("other/foreign.ckpt", "holds no tensor named model."),
        ("alone.ckpt", "no backbone/config.json beside"),
    ]:
        with pytest.raises(DataError, match=words):
            export(tmp_path / path, tmp_path / "out")


def test_weights_of_another_size_are_named(tmp_path):
    a_run(tmp_path / "run")
    config = tmp_path / "run" / "backbone" / "config.json"
    config.write_text(config.read_text().replace('"encoder_ffn_dim": 16', '"encoder_ffn_dim": 32'))
    with pytest.raises(DataError, match=r"fc1.weight is \(16, 16\), wanted \(32, 16\)"):
        export(tmp_path / "run", tmp_path / "out")


def test_a_deepspeed_checkpoint_is_gathered_first(tmp_path, monkeypatch):
    import lightning.pytorch.utilities.deepspeed as lightning_deepspeed

    model = a_run(tmp_path / "run")
    gathered = (tmp_path / "run" / "last.ckpt").read_bytes()
    (tmp_path / "run" / "last.ckpt").unlink()
    shards = tmp_path / "run" / "step=3.ckpt" / "checkpoint"
    shards.mkdir(parents=True)
    torch.save({}, shards / "mp_rank_00_model_states.pt")
    monkeypatch.setattr(
        lightning_deepspeed,
        "convert_zero_checkpoint_to_fp32_state_dict",
        lambda source, target: Path(target).write_bytes(gathered),
    )
    read = AutoModelForSeq2SeqLM.from_pretrained(export(shards.parent, tmp_path / "out"))
    assert torch.equal(read.model.shared.weight, model.model.shared.weight)


def test_it_is_pushed_to_a_hub(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options["private"]))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    a_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", push_to="me/model")
    assert calls[0] == ("me/model", True)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(calls[1][1])


def test_what_went_wrong_with_the_hub_or_the_disk_is_told(tmp_path, monkeypatch):
    import huggingface_hub

    class Api:
        def create_repo(self, name, **options):
            raise huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach it")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    a_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"out is written, but could not be uploaded to me/model: Cannot reach it"):
        export(tmp_path / "run", tmp_path / "out", push_to="me/model")
    assert (tmp_path / "out" / "model.safetensors").is_file()

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(BartForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(DataError, match=r"no space for .*other: .*nothing was written"):
        export(tmp_path / "run", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_the_command(tmp_path):
    a_run(tmp_path / "run")
    command = [sys.executable, "-m", "kedit", "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*command[:-1], tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "python -m kedit export: error: --output" in done.stderr
    assert "Traceback" not in done.stderr
