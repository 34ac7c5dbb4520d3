"""Stacked adapters against separate runs by PEFT, on tiny random models."""

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kedit.lm.adapters import Lora, adapter_state, add_lora
from kedit.lm.stacked import StackedLora, stack

SMALL = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
}
EDITS, ROWS, TOKENS, LORA = 3, 2, 5, Lora(rank=4)
IDS = torch.randint(20, (EDITS * ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def tiny(kind, dtype=torch.float32):
    torch.manual_seed(1)
    special = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **special, **SMALL[kind]))
    for parameter in model.parameters():  # larger than as it is initialised, so that there is something to learn
        parameter.data *= 3
    return model.to(dtype).eval()


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits


def loss_of(model, ids):
    """Each edit's own mean, summed over the edits in `ids`."""
    nll = cross_entropy(
        model(input_ids=ids).logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    )
    return nll / (ROWS * (TOKENS - 1))


def rows(edit):
    return IDS[edit * ROWS : (edit + 1) * ROWS]


def train_stacked(model, steps, clip=None, lora=LORA):
    stacked = stack(model, lora, EDITS, seed=7)
    optimizer = torch.optim.AdamW(stacked.parameters(), lr=1e-2, weight_decay=0.1)
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, IDS).backward()
        if clip is not None:
            norms.append(stacked.clip_per_edit(clip))
        optimizer.step()
    return stacked, norms


def train_alone(model, edit, steps, clip=None, lora=LORA):
    adapted = add_lora(model, lora, seed=7, edit=edit)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(adapted, rows(edit)).backward()
        if clip is not None:
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, clip))
        optimizer.step()
    return adapted, norms


def change_all(stacked):
    """Adapters that all change something, and differ."""
    generator = torch.Generator().manual_seed(5)
    for parameter in stacked.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_trained_together_equals_trained_alone(kind, clip):
    model = tiny(kind)
    base = logits(model)
    stacked, together = train_stacked(model, 5, clip)
    assert (logits(model) - base).abs().max() > 0.1
    for edit in range(EDITS):
        alone, norms = train_alone(tiny(kind), edit, 5, clip)
        if clip is not None:
            torch.testing.assert_close(torch.stack(together)[:, edit], torch.stack(norms), atol=1e-5, rtol=1e-4)
            assert min(norms) > clip
        wanted = adapter_state(alone)
        assert stacked.adapter(edit).keys() == wanted.keys()
        for name, tensor in stacked.adapter(edit).items():
            torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=0, msg=name)
        torch.testing.assert_close(logits(model)[rows_of(edit)], logits(alone, rows(edit)), atol=1e-4, rtol=1e-4)


def rows_of(edit):
    return slice(edit * ROWS, (edit + 1) * ROWS)


def test_clipping_leaves_a_short_gradient_as_it_is_and_scales_each_edit_alone():
    model = tiny("gpt2")
    stacked = stack(model, LORA, EDITS, seed=0)
    loss_of(model, IDS).backward()
    for parameter in stacked.parameters():
        parameter.grad[1] *= 1e-3
    before = [parameter.grad.clone() for parameter in stacked.parameters()]
    norms = stacked.clip_per_edit(0.1)
    assert norms[1] < 0.1 < min(norms[0], norms[2])
    for parameter, gradient in zip(stacked.parameters(), before, strict=True):
        assert torch.equal(parameter.grad[1], gradient[1])
        torch.testing.assert_close(parameter.grad[2], gradient[2] * (0.1 / (norms[2] + 1e-6)))


@pytest.mark.parametrize("kind", SMALL)
def test_first_values_do_not_depend_on_the_number_of_edits(kind):
    few, many = stack(tiny(kind), LORA, 2, seed=3), stack(tiny(kind), LORA, 5, seed=3)
    for edit in range(2):
        alone = adapter_state(add_lora(tiny(kind), LORA, 3, edit))
        for state in (few.adapter(edit), many.adapter(edit)):
            assert state.keys() == alone.keys()
            assert all(torch.equal(tensor, alone[name]) for name, tensor in state.items())
    assert not torch.equal(many.parameters()[0][0], many.parameters()[0][1])


@pytest.mark.parametrize("kind", SMALL)
def test_active_off_and_remove(kind):
    model = tiny(kind)
    base, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stacked = stack(model, LORA, EDITS, seed=0)
    assert torch.equal(logits(model), base)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == list(stacked.state_dict())
    change_all(stacked)
    everyone = logits(model)
    assert not torch.allclose(everyone, base, atol=0.01)
    for chosen in ([1], [0, 1], [1, 2], [2, 0], [1, 1]):
        with stacked.active(chosen):
            part = logits(model, torch.cat([rows(edit) for edit in chosen]))
        wanted = torch.cat([everyone[rows_of(edit)] for edit in chosen])
        torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-5)
    with stacked.active([2]), stacked.off():
        assert torch.equal(logits(model), base)
        assert torch.equal(logits(model, IDS[:5]), logits(tiny(kind), IDS[:5]))
    assert torch.equal(logits(model), everyone)

    assert stacked.remove() is model
    assert torch.equal(logits(model), base)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_edits_that_are_not_active_get_no_gradient():
    model = tiny("llama")
    stacked = stack(model, LORA, EDITS, seed=0)
    change_all(stacked)
    for chosen in ([2, 0], [0]):
        for parameter in stacked.parameters():
            parameter.grad = None
        with stacked.active(chosen):
            loss_of(model, torch.cat([rows(edit) for edit in chosen])).backward()
        sizes = torch.stack([parameter.grad.abs().sum((1, 2)) for parameter in stacked.parameters()]).sum(0)
        assert [edit for edit in range(EDITS) if sizes[edit] > 0] == sorted(chosen)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_one_edit_is_saved_as_peft_reads_it(kind, tmp_path):
    model = tiny(kind)
    stacked = stack(model, Lora(rank=2, alpha=3), EDITS, seed=0)
    change_all(stacked)
    stacked.save_adapter(1, tmp_path / "one", "base", "main")
    wanted = logits(model)[rows_of(1)]
    read = PeftModel.from_pretrained(tiny(kind), tmp_path / "one")
    assert read.peft_config["default"].lora_alpha == 3
    torch.testing.assert_close(logits(read, rows(1)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_over_bfloat16_the_adapters_are_float32_and_compute_what_peft_does(autocast):
    model = tiny("llama", torch.float32 if autocast else torch.bfloat16)
    stacked = stack(model, LORA, EDITS, seed=0)
    change_all(stacked)
    assert {parameter.dtype for parameter in stacked.parameters()} == {torch.float32}
    alone = add_lora(tiny("llama", model.dtype), LORA, 0)
    for name, tensor in adapter_state(alone).items():
        tensor.copy_(stacked.adapter(2)[name])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        together, separate = logits(model)[rows_of(2)], logits(alone, rows(2))
    assert together.dtype == separate.dtype == torch.bfloat16
    torch.testing.assert_close(together.float(), separate.float(), atol=0.05, rtol=0.05)


def test_a_layer_takes_rows_without_a_token_dimension():
    layer = StackedLora(torch.nn.Linear(6, 4), 3, 2, 0.5, 0.0)
    torch.nn.init.normal_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(6, 6)
    wanted = [
        layer.base_layer(x[2 * e : 2 * e + 2]) + 0.5 * x[2 * e : 2 * e + 2] @ layer.lora_A[e].T @ layer.lora_B[e].T
        for e in range(3)
    ]
    torch.testing.assert_close(layer(x), torch.cat(wanted))
    torch.testing.assert_close(layer(x[:, None].expand(6, 5, 6))[:, 3], torch.cat(wanted))
    with pytest.raises(ValueError, match="5 rows for 3 edits"):
        layer(x[:5])


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    layer = StackedLora(torch.nn.Linear(64, 4, bias=False), 2, 8, 1.0, 0.5)
    torch.nn.init.normal_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.ones(2, 1, 64)
    assert not torch.equal(layer(x), layer(x))
    mean = torch.stack([layer(x) for _ in range(400)]).mean(0)
    assert torch.equal(layer.eval()(x), layer(x))
    torch.testing.assert_close(mean, layer(x), atol=5, rtol=0)
    assert layer(x).abs().max() > 20
    assert not stack(tiny("gpt2"), Lora(dropout=0.5), 2, 0).layers["transformer.h.0.mlp.c_fc"].training


def test_state_goes_back_in_and_an_edit_is_reset():
    model = tiny("gpt2")
    stacked = stack(model, LORA, EDITS, seed=0)
    first = {name: tensor.clone() for name, tensor in stacked.state_dict().items()}
    assert first["transformer.h.1.mlp.c_proj.lora_A"].shape == (EDITS, 4, 64)
    change_all(stacked)
    changed = {name: tensor.clone() for name, tensor in stacked.state_dict().items()}
    stacked.reset([1])
    for name, tensor in stacked.state_dict().items():
        assert torch.equal(tensor[1], first[name][1])
        assert torch.equal(tensor[[0, 2]], changed[name][[0, 2]])
    stacked.load_state_dict(changed)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in stacked.state_dict().items())
    stacked.reset()
    assert all(torch.equal(tensor, first[name]) for name, tensor in stacked.state_dict().items())
    for wrong, words in (
        (stack(tiny("gpt2"), LORA, 2, 0).state_dict(), r"lora_A is \(2, 4, 16\), wanted \(3, 4, 16\)"),
        (changed | {"x": torch.zeros(1)}, r"x is \(1,\), wanted none"),
    ):
        with pytest.raises(ValueError, match=words):
            stacked.load_state_dict(wrong)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="0 edits: wanted at least 1"):
        stack(tiny("gpt2"), LORA, 0, 0)
    model = tiny("gpt2")
    stacked = stack(model, LORA, 2, 0)
    with pytest.raises(ValueError, match="has adapters already"):
        stack(model, LORA, 2, 0)
    with pytest.raises(ValueError, match="there is no edit 2: wanted 0 to 1"), stacked.active([0, 2]):
        pass
    with pytest.raises(ValueError, match="there is no edit -1"):
        stacked.adapter(-1)
    with pytest.raises(ValueError, match="no edits are chosen"), stacked.active([]):
        pass
    with pytest.raises(ValueError, match="5 rows for 2 edits"):
        logits(model, IDS[:5])


def test_a_sequence_to_sequence_model_can_be_stacked():
    settings = {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 16, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", vocab_size=20, **settings)).eval()
    ids = IDS[:4]
    with torch.no_grad():
        base = model(input_ids=ids, decoder_input_ids=ids).logits
        stacked = stack(model, LORA, 2, 0)
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, base)
        change_all(stacked)
        both = model(input_ids=ids, decoder_input_ids=ids).logits
        with stacked.active([1]):
            one = model(input_ids=ids[2:], decoder_input_ids=ids[2:]).logits
    torch.testing.assert_close(both[2:], one, atol=1e-5, rtol=1e-5)
