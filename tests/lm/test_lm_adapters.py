"""Adapters on tiny random models of every causal architecture, read back by PEFT and transformers alone."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kedit.lm.adapter_files import read_adapter
from kedit.lm.adapters import (
    Lora,
    adapter_off,
    adapter_state,
    add_lora,
    load_adapter,
    load_adapter_state,
    merge,
    remove,
    reset,
    save_adapter,
    save_config,
    target_layers,
)
from kedit.lm.backbones import CAUSAL

LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2} | {
    "num_key_value_heads": 1
}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2}
NEO = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
NEOX = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {"gpt2": GPT, "gpt_neo": NEO, "gptj": GPT | {"rotary_dim": 4}, "gpt_neox": NEOX}
LAYERS = {"gpt2": 4, "gpt_neo": 6, "gptj": 6, "gpt_neox": 4}  # of one block
IDS = torch.arange(24).view(4, 6) % 20


def tiny(kind, **more):
    torch.manual_seed(1)
    special = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **special, **SMALL.get(kind, LLAMA), **more)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits


def disturb(model, scale=0.1):
    """An adapter that changes something."""
    generator = torch.Generator().manual_seed(5)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)


@pytest.mark.parametrize("kind", CAUSAL)
def test_an_adapter_taken_off_gives_back_the_base_bit_for_bit(kind):
    base = tiny(kind)
    before, weights = logits(base), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = add_lora(base, Lora(rank=2), seed=0)
    assert torch.equal(logits(model), before)
    assert len(adapter_state(model)) == 2 * 2 * LAYERS.get(kind, 7)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    disturb(model)
    changed = logits(model)
    assert not torch.allclose(changed, before, atol=1e-3)
    with adapter_off(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), changed)
    plain = remove(model)
    assert type(plain) is type(tiny(kind))
    assert torch.equal(logits(plain), before)
    assert plain.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_head_and_the_embeddings_have_no_adapter(kind):
    model = tiny(kind, tie_word_embeddings=False)
    layers = target_layers(model)
    kept = {model.get_output_embeddings(), model.get_input_embeddings()}
    assert not kept & set(layers.values())
    adapted = add_lora(model, Lora(rank=2), seed=0)
    assert type(adapted.get_output_embeddings()) is nn.Linear
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in adapter_state(adapted)}
    assert names == layers.keys()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gptj"])
def test_peft_reads_what_was_saved_and_transformers_what_was_merged(kind, tmp_path):
    base = tiny(kind)
    base.save_pretrained(tmp_path / "base")
    model = add_lora(base, Lora(rank=3, alpha=4.5, targets=["c_attn"] if kind == "gpt2" else ["q_proj"]), seed=0)
    disturb(model, 0.5)
    wanted = logits(model)
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"), "main")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    assert (settings["revision"], settings["lora_alpha"], settings["task_type"]) == ("main", 4.5, "CAUSAL_LM")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(kind), tmp_path / "adapter")), wanted)
    again = load_adapter(tiny(kind), tmp_path / "adapter")
    assert torch.equal(logits(again), wanted)
    assert all(p.requires_grad for name, p in again.named_parameters() if "lora_" in name)
    merge(model).save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not any("lora" in name for name in plain.state_dict())
    torch.testing.assert_close(logits(plain), wanted, atol=1e-5, rtol=1e-5)


def test_a_sequence_to_sequence_model_can_have_one():
    settings = {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 16, "decoder_start_token_id": 0}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", vocab_size=20, **settings))
    adapted = add_lora(model, Lora(rank=2), seed=0)
    assert adapted.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert not any("lm_head" in name for name in adapter_state(adapted))


def test_first_values_depend_on_seed_and_edit_alone():
    state = torch.get_rng_state()
    one = adapter_state(add_lora(tiny("gpt2"), Lora(rank=2), seed=3, edit=1))
    torch.manual_seed(99)
    assert not torch.equal(torch.get_rng_state(), state)
    before = torch.get_rng_state()
    model = tiny("gpt2")
    torch.set_rng_state(before)
    same = add_lora(model, Lora(rank=2), seed=3, edit=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], tensor) for name, tensor in adapter_state(same).items())
    for seed, edit in ((3, 2), (4, 1), (1, 3)):
        other = adapter_state(add_lora(tiny("gpt2"), Lora(rank=2), seed, edit))
        assert all(not torch.equal(one[name], other[name]) for name in one if "lora_A" in name)
    a = one["base_model.model.transformer.h.0.mlp.c_proj.lora_A.weight"]
    assert a.shape == (2, 64)
    assert 0.9 / 8 < a.abs().max() <= 1 / 8  # uniform within 1 / sqrt(inputs)
    disturb(same)
    reset(same, 3, 1)
    assert all(torch.equal(one[name], tensor) for name, tensor in adapter_state(same).items())


def test_an_adapter_is_float32_over_a_base_that_is_not():
    model = add_lora(tiny("llama").to(torch.bfloat16), Lora(rank=2), seed=0)
    assert {tensor.dtype for tensor in adapter_state(model).values()} == {torch.float32}
    disturb(model)
    assert logits(model).dtype == torch.bfloat16
    assert merge(model).dtype == torch.bfloat16


def test_gradients_flow_though_the_adapter_was_off_in_between():
    model = add_lora(tiny("gpt2"), Lora(rank=2), seed=0)
    loss = model(input_ids=IDS, labels=IDS).loss
    with adapter_off(model), adapter_off(model):
        logits(model)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == 16
    assert all(g.abs().sum() > 0 for name, g in gradients.items() if "lora_B" in name)
    frozen = next(p for name, p in model.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    with pytest.raises(RuntimeError, match="stop"), adapter_off(model):
        raise RuntimeError("stop")
    assert not frozen.requires_grad
    assert len(adapter_state(model)) == 16


def test_a_state_goes_back_in_and_that_of_another_model_does_not():
    model = add_lora(tiny("gpt2"), Lora(rank=2), seed=0)
    disturb(model)
    state = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    other = add_lora(tiny("gpt2"), Lora(rank=2), seed=1)
    load_adapter_state(other, state)
    assert torch.equal(logits(other), logits(model))
    for wrong, words in (
        (
            {name: t for name, t in state.items() if "h.1" not in name},
            r"h.1.attn.c_attn.lora_A.weight is missing.*5 more",
        ),
        (state | {"x": torch.zeros(1)}, "x is unknown"),
        ({name: t[:1] for name, t in state.items()}, r"is \(1, 16\), wanted \(2, 16\)"),
    ):
        with pytest.raises(ValueError, match=words):
            load_adapter_state(other, wrong)
    assert torch.equal(logits(other), logits(model))


def test_settings_that_make_no_sense_are_named():
    for settings, words in (
        ({"rank": 0}, "lora.rank is 0"),
        ({"alpha": 0.0}, "lora.alpha is 0.0"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"targets": []}, "lora.targets is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            Lora(**settings)
    with pytest.raises(ValueError, match=r"no linear layer is named lm_head, wq; there are c_attn, c_fc, c_proj"):
        add_lora(tiny("gpt2"), Lora(targets=["c_fc", "wq", "lm_head"]), 0)
    model = tiny("gpt2")
    add_lora(model, Lora(rank=1), 0)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(model, Lora(rank=1), 0)


def test_a_merge_that_is_not_finite_fails():
    model = add_lora(tiny("gpt2"), Lora(rank=2), 0)
    for tensor in adapter_state(model).values():
        tensor.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        merge(model)


def test_a_damaged_adapter_is_found_out(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(add_lora(tiny("gpt2"), Lora(rank=2), 0), folder, "gpt2")
    config, tensors = read_adapter(folder)
    assert (config.r, len(tensors)) == (2, 16)
    file = folder / "adapter_model.safetensors"
    whole, settings = file.read_bytes(), (folder / "adapter_config.json").read_text()

    for damaged, words in (
        (whole[:-7], "cut off or damaged"),
        (whole[:5], "cut off or damaged"),
        (b"", "cut off or damaged"),
        (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "its checksum is another one"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(OSError, match=words):
            load_adapter(tiny("gpt2"), folder)
    file.unlink()
    with pytest.raises(OSError, match=r"holds no adapter_model.safetensors, so its writing was cut off"):
        read_adapter(folder)
    file.write_bytes(whole)
    for text, words in (
        (settings[:50], "damaged, or no description"),
        (settings.replace('"LORA"', '"IA3"'), "its peft_type is IA3"),
        ("[]", "damaged, or no description"),
    ):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(OSError, match=words):
            read_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(OSError, match=r"holds no adapter_config.json"):
        read_adapter(folder)


def test_an_adapter_of_another_model_leaves_the_model_plain(tmp_path):
    save_adapter(add_lora(tiny("gpt2"), Lora(rank=2), 0), tmp_path / "adapter", "gpt2")
    other = tiny("gpt2", n_inner=24)
    with pytest.raises(ValueError, match=r"c_fc.lora_B.weight is \(64, 2\), wanted \(24, 2\)"):
        load_adapter(other, tmp_path / "adapter")
    assert not any("lora" in name for name in other.state_dict())
    with pytest.raises(ValueError, match="no linear layer is named c_attn"):
        load_adapter(tiny("llama"), tmp_path / "adapter")


def test_an_adapter_by_others_is_read_too(tmp_path):
    model = add_lora(tiny("llama"), Lora(rank=2), 0)
    disturb(model)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    assert torch.equal(logits(load_adapter(tiny("llama"), tmp_path / "theirs")), logits(model))

    theirs = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=r".*\.[qk]_proj", init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "pattern", save_embedding_layers=False)
    ours = load_adapter(tiny("llama"), tmp_path / "pattern")
    save_adapter(ours, tmp_path / "ours", "llama")
    assert torch.equal(logits(load_adapter(tiny("llama"), tmp_path / "ours")), logits(theirs))
    assert not torch.equal(logits(theirs), logits(tiny("llama")))


def test_saving_replaces_an_adapter_and_nothing_else(tmp_path, monkeypatch):
    model = add_lora(tiny("gpt2"), Lora(rank=2), 0)
    save_adapter(model, tmp_path / "a", "gpt2")
    disturb(model)
    save_adapter(model, tmp_path / "a", "gpt2")
    assert torch.equal(logits(load_adapter(tiny("gpt2"), tmp_path / "a")), logits(model))

    def killed(*_, **__):
        raise KeyboardInterrupt

    reset(model, 0)
    with monkeypatch.context() as patch:
        patch.setattr("kedit.lm.adapter_files.write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            save_adapter(model, tmp_path / "a", "gpt2")
    assert not torch.equal(logits(load_adapter(tiny("gpt2"), tmp_path / "a")), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for path in ("mine", "mine/thesis.tex"):
        with pytest.raises(FileExistsError, match="holds no adapter"):
            save_adapter(model, tmp_path / path, "gpt2")
    save_config(model, tmp_path / "mine", "gpt2")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"thesis.tex", "adapter_config.json"}


def test_the_checksum_is_that_of_the_tensors(tmp_path):
    save_adapter(add_lora(tiny("gpt2").to(torch.bfloat16), Lora(rank=2), 0).to(torch.bfloat16), tmp_path / "a", "gpt2")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    read_adapter(tmp_path / "a")
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1}, file, metadata={"sha256": "0" * 64})
    with pytest.raises(OSError, match="checksum"):
        read_adapter(tmp_path / "a")
