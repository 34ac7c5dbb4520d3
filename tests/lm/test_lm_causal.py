"""Packed rows read as each document alone, and continued prefixes as the whole text, in every architecture."""

import numpy as np
import pytest
import torch
from conftest import CAUSAL_ARCHITECTURES, tiny_causal

from kedit.lm.backbones import CAUSAL, output_head
from kedit.lm.causal import CausalRows, pack, position_limit, row_states, start_ids, states

NAMES = sorted(CAUSAL_ARCHITECTURES)
CLOSE = {"atol": 2e-5, "rtol": 2e-4}


def documents(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    drawn = np.random.default_rng(seed)
    return [drawn.integers(2, 100, length) for length in lengths]


@torch.no_grad()
def alone(model, ids):
    """States of one document as transformers computes them without any of our masks."""
    return model.base_model(input_ids=torch.as_tensor(np.asarray(ids))[None], use_cache=False).last_hidden_state[0]


def test_every_architecture_that_is_loaded_is_tested():
    assert set(CAUSAL) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_packed_document_is_read_as_if_alone(name):
    model = tiny_causal(name)
    rows = [documents(5, 21, 1, 13), documents(30, seed=1)]
    packed = pack(rows, width=48)
    assert packed.ids_BL.shape == (2, 48)
    hidden = states(model, packed)
    for row, inside in enumerate(rows):
        start = 0
        for document in inside:
            torch.testing.assert_close(hidden[row, start : start + len(document)], alone(model, document), **CLOSE)
            start += len(document)
    # the mask is seen to matter: without it later documents read the earlier ones
    mixed = states(model, CausalRows(packed.ids_BL, torch.zeros_like(packed.document_BL), packed.position_BL))
    assert (mixed[0, 5:40] - hidden[0, 5:40]).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_document_has_the_gradients_it_has_alone(name):
    model = tiny_causal(name)
    weight = model.get_input_embeddings().weight
    inside = documents(5, 11)
    states(model, pack([inside])).square().sum().backward()
    packed, weight.grad = weight.grad, None
    for document in inside:
        states(model, pack([[document]])).square().sum().backward()
    torch.testing.assert_close(packed, weight.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("batch_tokens", [16, 96, 8192])
@pytest.mark.parametrize("name", NAMES)
def test_a_continued_prefix_is_read_as_the_whole_text(name, batch_tokens):
    model = tiny_causal(name)
    prefixes = documents(17, 3, 0, 29, 17, seed=2)
    rows = documents(4, 19, 1, 7, 12, 12, 5, 30, seed=3)
    of = [0, 1, 0, 2, 3, 3, 4, 2]
    found = dict(row_states(model, rows, prefixes, of, batch_tokens))
    assert sorted(found) == list(range(len(rows)))
    for row, hidden in found.items():
        whole = alone(model, np.concatenate([prefixes[of[row]], rows[row]]))
        torch.testing.assert_close(hidden, whole[len(prefixes[of[row]]) :], **CLOSE)
        assert not hidden.requires_grad
    # the prefix is seen to matter
    assert (found[0] - alone(model, rows[0])).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_prefixes_are_read_alone(name):
    model = tiny_causal(name)
    rows = documents(4, 19, 1, 7)
    for row, hidden in row_states(model, rows, batch_tokens=24):
        torch.testing.assert_close(hidden, alone(model, rows[row]), **CLOSE)


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, "n_positions" if name in ("gpt2", "gptj") else "max_position_embeddings") for name in NAMES]
    + [("mistral", "sliding_window")],
)
def test_long_and_short_prefixes_together_stay_within_what_the_model_reads(name, setting):
    """Each text fits, but the longest prefix and the longest row are not of the same text."""
    model = tiny_causal(name, **{setting: 64})
    prefixes, rows = documents(50, 6, seed=4), documents(8, 50, 14, 58, seed=5)
    for row, hidden in row_states(model, rows, prefixes, [0, 1, 0, 1]):
        whole = alone(model, np.concatenate([prefixes[row % 2], rows[row]]))
        torch.testing.assert_close(hidden, whole[len(prefixes[row % 2]) :], **CLOSE)


def test_a_text_longer_than_the_model_reads_is_refused():
    with pytest.raises(ValueError, match="row 1 has 65 tokens with its prefix, and the model reads 64"):
        list(row_states(tiny_causal("mistral", sliding_window=64), documents(24, 25), documents(40), [0, 0]))


def test_a_prefix_is_read_once_for_all_its_rows():
    model = tiny_causal("gpt2")
    read = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    list(row_states(model, documents(*[6] * 8), documents(40), [0] * 8))
    assert read == [(1, 40), (8, 6)]
    read.clear()
    list(row_states(model, documents(*[6] * 8), documents(40), [0] * 8, batch_tokens=3 * 46))
    assert read == [(1, 40), (3, 6), (3, 6), (2, 6)]


def test_bfloat16_stays_near_float32():
    model = tiny_causal("llama")
    prefixes, rows = documents(17, 3), documents(4, 9, 30)
    exact = dict(row_states(model, rows, prefixes, [0, 1, 0]))
    for row, hidden in row_states(model.bfloat16(), rows, prefixes, [0, 1, 0]):
        assert hidden.dtype is torch.bfloat16
        assert (hidden.float() - exact[row]).norm() / exact[row].norm() < 0.05


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_states_and_output_head_are_the_models_logits(name):
    model = tiny_causal(name)
    ids = documents(9)[0]
    weight, bias = output_head(model)
    logits = torch.nn.functional.linear(states(model, pack([[ids]])), weight, bias)
    torch.testing.assert_close(logits, model(input_ids=torch.as_tensor(ids)[None]).logits, **CLOSE)


def test_a_text_starts_with_bos_where_there_is_one(bart_tokenizer, t5_tokenizer):
    assert start_ids(bart_tokenizer) == [bart_tokenizer.bos_token_id]
    t5_tokenizer.bos_token = None
    assert start_ids(t5_tokenizer) == []


def test_the_limit_is_the_position_table_or_the_sliding_window():
    assert position_limit(tiny_causal("gpt_neo").config) == 512
    assert position_limit(tiny_causal("gpt2").config) == 512
    assert position_limit(tiny_causal("mistral", sliding_window=16).config) == 16
    assert position_limit(tiny_causal("qwen2", max_position_embeddings=300, sliding_window=16).config) == 300
