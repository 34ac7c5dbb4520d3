"""Export of tiny models with random weights, read back by transformers alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
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
from kedit.lm.adapters import Lora, adapter_state, add_lora, save_config
from kedit.lm.backbones import CAUSAL, save_skeleton
from kedit.lm.stacked import stack
from kedit.running.export import export

SMALL = {
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    "t5": {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 16, "decoder_start_token_id": 0},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2} | {
    "num_key_value_heads": 1
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def a_model(kind: str, *, untie: bool = False):
    special = {"vocab_size": 7, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **special, **SMALL.get(kind, LLAMA))
    if untie:
        config.tie_word_embeddings = False
    builder = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = builder.from_config(config).eval()
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


def a_run(folder: Path, kind: str = "bart", *, untie: bool = False):
    """A run's folder with a checkpoint, and the model in it."""
    torch.manual_seed(0)
    model = a_model(kind, untie=untie)
    save_skeleton(model, tokenizer(), folder / "backbone")
    state = {"state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}}
    state["state_dict"]["other.weight"] = torch.zeros(2)
    torch.save(state | {"hyper_parameters": {"_class_path": "kedit.kilm.KilmModule"}}, folder / "last.ckpt")
    return model


@pytest.mark.parametrize("kind", ["bart", "t5", *CAUSAL])
@pytest.mark.parametrize("untie", [False, True])
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


@torch.no_grad()
def logits(model, ids):
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more).logits


def a_lora_run(folder: Path, kind: str, base: Path, *, whole: bool = False):
    """A run's folder with a checkpoint of an adapter, its base model, and the model with both.

    Args:
        folder: the run's.
        kind: architecture.
        base: where the base model is written.
        whole: the checkpoint holds the base too, as DeepSpeed writes it.
    """
    torch.manual_seed(0)
    model = a_model(kind)
    model.save_pretrained(base)
    save_skeleton(model, tokenizer(), folder / "backbone")
    model = add_lora(model, Lora(rank=2), seed=0)
    save_config(model, folder / "backbone", str(base))
    for tensor in adapter_state(model).values():
        tensor.normal_(0, 0.3)
    state = {f"adapter.{name}": tensor for name, tensor in adapter_state(model).items()}
    if whole:
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    (folder / "config.yaml").write_text(
        "model: {class_path: kedit.distill.DistillModule, init_args: {backbone: {name: x, dtype: float32}}}\n"
    )
    return model


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama", "t5"])
def test_an_adapter_is_merged_into_its_base(tmp_path, kind, whole):
    model = a_lora_run(tmp_path / "run", kind, tmp_path / "base", whole=whole)
    output = export(tmp_path / "run", tmp_path / "out")
    builder = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    read = builder.from_pretrained(output).eval()
    ids = AutoTokenizer.from_pretrained(output)("a b c", return_tensors="pt")["input_ids"]
    wanted = logits(model, ids)
    torch.testing.assert_close(logits(read, ids), wanted, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(logits(model, ids), wanted, atol=1e-2)
    card = (output / "README.md").read_text()
    assert f"A {type(read).__name__} trained by `kedit.distill.DistillModule` of kedit" in card
    assert "library_name: transformers" in card


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_adapter_is_written_as_peft_reads_it(tmp_path, kind):
    model = a_lora_run(tmp_path / "run", kind, tmp_path / "base")
    output = export(tmp_path / "run", tmp_path / "out", form="adapter")
    assert not list(output.glob("model*"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    ids = AutoTokenizer.from_pretrained(output)("a b c", return_tensors="pt")["input_ids"]
    assert torch.equal(logits(PeftModel.from_pretrained(base, output), ids), logits(model, ids))
    card = (output / "README.md").read_text()
    for words in ("library_name: peft", f"A LoRA adapter for a {type(base).__name__}", f'from_pretrained("{tmp_path}'):
        assert words in card
    assert "base_model:" not in card
    # hub ids go into the card's head, and an export may be written over
    export(tmp_path / "run", output, form="adapter", base="me/base", dtype="bfloat16")
    assert "base_model: me/base" in (output / "README.md").read_text()
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"
    assert {tensor.dtype for tensor in load_file(output / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_a_base_that_moved_is_named_and_another_one_does_not_fit(tmp_path):
    model = a_lora_run(tmp_path / "run", "gpt2", tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(OSError, match=r"base: no such folder"):
        export(tmp_path / "run", tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        export(tmp_path / "run", tmp_path / "out", base=str(tmp_path / "moved"))
    ).eval()
    ids = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(logits(read, ids), logits(model, ids), atol=1e-5, rtol=1e-5)

    a_model("llama").save_pretrained(tmp_path / "llama")
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=7, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(tmp_path / "narrow")
    for name, words in (("llama", "no linear layer is named c_attn"), ("narrow", r"is \(2, 16\), wanted \(2, 8\)")):
        with pytest.raises(DataError, match=rf"last.ckpt .*cannot be merged into .*{words}"):
            export(tmp_path / "run", tmp_path / "out", base=str(tmp_path / name))

    save_config(model, tmp_path / "run" / "backbone", None)
    with pytest.raises(DataError, match="does not name the base model of the adapter: give it as --base"):
        export(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / "backbone" / "adapter_config.json").unlink()
    with pytest.raises(OSError, match=r"holds no adapter_config.json"):
        export(tmp_path / "run", tmp_path / "out")


def test_edits_side_by_side_have_folders_of_their_own(tmp_path):
    a_lora_run(tmp_path / "run", "gpt2", tmp_path / "base")
    stacked = stack(a_model("gpt2"), Lora(rank=2), 3, seed=0)
    state = {f"adapter.{name}": tensor for name, tensor in stacked.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "run" / "last.ckpt")
    with pytest.raises(DataError, match=r"many edits side by side: each by itself, .* is a folder in .*run.edits"):
        export(tmp_path / "run", tmp_path / "out")


def test_the_card_names_a_base_that_was_made(tmp_path):
    a_run(tmp_path / "run", "gpt2")
    (tmp_path / "run" / "backbone" / "base.json").write_text('{"name": "made/here", "revision": null}')
    assert "base model: made/here;" in (export(tmp_path / "run", tmp_path / "out") / "README.md").read_text()


def test_a_model_without_adapter_has_none_to_write(tmp_path):
    a_run(tmp_path / "run", "gpt2")
    with pytest.raises(DataError, match="holds all weights of a model and no adapter: leave out --form adapter"):
        export(tmp_path / "run", tmp_path / "out", form="adapter")


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
