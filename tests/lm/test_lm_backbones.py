import json

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from kedit.lm import backbones
from kedit.lm.backbones import (
    Backbone,
    add_tokens,
    grow_vocabulary,
    load_seq2seq,
    load_tokenizer,
    output_scale,
    save_skeleton,
)
from kedit.lm.flops import forward_flops
from kedit.lm.optim import Schedule, parameter_groups
from kedit.lm.text import encode, fingerprint, token_span


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_models_take_their_ids_from_the_tokenizer(name, bart_tokenizer, t5_tokenizer):
    tokenizer = bart_tokenizer if name == "bart" else t5_tokenizer
    model = load_seq2seq(Backbone(architecture=ARCHITECTURES[name]), tokenizer)
    assert model.config.vocab_size == len(tokenizer)
    start = tokenizer.eos_token_id if name == "bart" else tokenizer.pad_token_id
    assert model.config.decoder_start_token_id == start
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_weights_that_are_not_there_are_not_drawn_at_random(tmp_path, bart_tokenizer):
    model = load_seq2seq(Backbone(architecture=ARCHITECTURES["bart"]), bart_tokenizer)
    whole = {name: tensor for name, tensor in model.state_dict().items() if "decoder.layers.0.fc" not in name}
    model.save_pretrained(tmp_path, state_dict=whole)
    with pytest.raises(OSError, match=r"lacks model\.decoder\.layers\.0\.fc1\.bias and 3 more weights"):
        load_seq2seq(Backbone(str(tmp_path)), bart_tokenizer)


def test_growing_keeps_an_untied_head(tmp_path):
    model = tiny_model("t5-v1.1")
    head = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.lm_head.weight = head
    kept = head.detach().clone()
    grow_vocabulary(model, 105)
    assert model.lm_head.weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 105
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight[:100], kept)


def test_growing_a_tied_model_keeps_it_tied_and_a_roomy_one_as_it_is():
    model = tiny_model("bart")
    old = model.get_input_embeddings().weight.detach().clone()
    grow_vocabulary(model, 90)
    assert len(model.get_input_embeddings().weight) == 100
    grow_vocabulary(model, 105, multiple=64)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(old) == 100
    assert model.lm_head.weight.shape[0] == model.final_logits_bias.shape[1] == 128
    assert torch.equal(model.get_input_embeddings().weight[:100], old)


def test_a_saved_model_loads_by_name_and_takes_overrides(tmp_path, bart_tokenizer):
    model = load_seq2seq(Backbone(architecture=ARCHITECTURES["bart"]), bart_tokenizer)
    model.save_pretrained(tmp_path)
    save_skeleton(model, bart_tokenizer, tmp_path)
    again = load_seq2seq(
        Backbone(name=str(tmp_path), architecture={"dropout": 0.0}, gradient_checkpointing=True), bart_tokenizer
    )
    assert again.config.dropout == 0.0
    assert again.is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BartForConditionalGeneration"]


def test_wrong_architectures_are_refused_by_name(bart_tokenizer):
    with pytest.raises(ValueError, match="gpt2, wanted one of bart"):
        load_seq2seq(Backbone(architecture={"model_type": "gpt2"}), bart_tokenizer)
    with pytest.raises(ValueError, match="nope, wanted one of bart"):
        load_seq2seq(Backbone(architecture={"model_type": "nope"}), bart_tokenizer)
    with pytest.raises(ValueError, match=r"architecture: .*d_model.*expected int"):
        load_seq2seq(Backbone(architecture=ARCHITECTURES["bart"] | {"d_model": "wide"}), bart_tokenizer)
    with pytest.raises(ValueError, match=r"backbone\.name"):
        Backbone()


def test_a_model_that_is_not_there_is_named_with_the_remedy(tmp_path, monkeypatch, bart_tokenizer):
    def unreachable(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(backbones.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(backbones.socket, "create_connection", unreachable)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match=r"nobody/nothing: no such folder here.*hf download nobody/nothing"):
        load_tokenizer("nobody/nothing")
    with pytest.raises(OSError, match="nobody/nothing: no such folder here"):
        load_seq2seq(Backbone(name="nobody/nothing"), bart_tokenizer)
    for name in (str(tmp_path / "none"), "./none", "~/none/of/that", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such folder"):
            load_tokenizer(name)


def test_a_folder_that_lacks_something_is_named(tmp_path, bart_tokenizer):
    with pytest.raises(OSError, match=f"{tmp_path}: holds no tokenizer"):
        load_tokenizer(tmp_path)
    model = load_seq2seq(Backbone(architecture=ARCHITECTURES["bart"]), bart_tokenizer)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match=f"{tmp_path}: holds no model that transformers can load"):
        load_seq2seq(Backbone(name=str(tmp_path)), bart_tokenizer)
    with pytest.raises(OSError, match=f"{tmp_path}: holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_tokens_are_added_once(bart_tokenizer):
    before = len(bart_tokenizer)
    first = add_tokens(bart_tokenizer, ["<ent>", "</ent>"])
    assert add_tokens(bart_tokenizer, ["<ent>", "</ent>"]) == first == {"<ent>": before, "</ent>": before + 1}


def test_only_t5_v10_scales_its_states():
    assert output_scale(tiny_model("t5")) == 32**-0.5
    assert (
        output_scale(tiny_model("t5-v1.1")) == output_scale(tiny_model("mt5")) == output_scale(tiny_model("bart")) == 1
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flops_equal_the_counter(name):
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(1, 24, dtype=torch.long), decoder_input_ids=torch.ones(1, 16, dtype=torch.long))
    assert forward_flops(model.config, np.array([24]), np.array([16])) == pytest.approx(
        counter.get_total_flops(), rel=1e-4
    )
    double = forward_flops(model.config, np.array([24, 24]), np.array([16, 16]))
    assert double == pytest.approx(2 * counter.get_total_flops(), rel=1e-4)


def test_schedule_warms_up_and_decays():
    linear = Schedule(warmup=0.1)
    assert [round(linear.factor(step, 100), 3) for step in (0, 9, 10, 55, 100)] == [0.091, 0.909, 1.0, 0.5, 0.0]
    cosine = Schedule("cosine", warmup=10, floor=0.1)
    assert cosine.factor(10, 110) == 1.0
    assert cosine.factor(60, 110) == pytest.approx(0.55)
    assert cosine.factor(110, 110) == pytest.approx(0.1)
    assert Schedule("constant").factor(70, 100) == 1.0
    for wrong in ({"warmup": -1}, {"floor": 1.5}, {"floor": -0.1}):
        with pytest.raises(ValueError, match=f"schedule.{next(iter(wrong))} is"):
            Schedule(**wrong)


def test_vectors_do_not_decay():
    model = tiny_model("bart")
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert {p.ndim for p in plain["params"]} == {1}
    assert sum(p.numel() for g in (decayed, plain) for p in g["params"]) == sum(p.numel() for p in model.parameters())


def test_text_is_encoded_without_special_tokens(bart_tokenizer):
    text = "Velmar <s> is a </s> harbour"
    encoded, spaced = encode(bart_tokenizer, [text])[0], encode(bart_tokenizer, [text], leading_space=True)[0]
    assert bart_tokenizer.bos_token_id not in encoded.ids
    assert bart_tokenizer.eos_token_id not in encoded.ids
    assert bart_tokenizer.decode(encoded.ids) == text
    assert bart_tokenizer.decode(spaced.ids) == " " + text
    assert spaced.offsets[-1, 1] == encoded.offsets[-1, 1] == len(text)
    assert spaced.offsets.min() == 0
    assert encode(bart_tokenizer, []) == []


def test_token_spans_cover_what_they_touch():
    offsets = np.array([[0, 3], [3, 7], [7, 9]])
    assert token_span(offsets, 4, 6) == (1, 2)
    assert token_span(offsets, 2, 8) == (0, 3)
    assert token_span(offsets, 9, 12) == (0, 0)


def test_fingerprints_tell_tokenizers_apart(bart_tokenizer, t5_tokenizer):
    first = fingerprint(bart_tokenizer)
    assert first != fingerprint(t5_tokenizer)
    add_tokens(bart_tokenizer, ["<ent>"])
    assert fingerprint(bart_tokenizer) != first
    assert fingerprint(bart_tokenizer, ignore=["<ent>"]) == first
