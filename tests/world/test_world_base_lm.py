import json
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kedit.world import base_lm
from kedit.world.base_lm import WorldLM
from kedit.world.pretraining import Pretraining


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(base_lm, "ASKED", 20)
    return WorldLM(known=60, width=16, layers=1, heads=2, vocabulary=700, steps=4, batch=4)


def test_its_quality_tells_what_definitions_are_worth(small):
    quality = json.loads((small.make() / "quality.json").read_text())
    assert quality["gain"] == pytest.approx(quality["new_nll"] - quality["defined_nll"], abs=1e-3)


def test_the_text_of_edits_is_read_where_it_is_wanted(small):
    texts, unforeseen = small._texts()
    assert unforeseen is None, "a text of definitions has to be foretold whole, as ever"
    others, spans = replace(small, text="edits")._texts()
    assert len(others) == len(texts) == len(spans) == 16
    assert any(spans)
    assert others != texts
    quality = json.loads((replace(small, text="edits").make() / "quality.json").read_text())
    assert {"told_defined_accuracy", "one_hop_edited_accuracy", "known_nll"} <= quality.keys()


def test_training_lowers_the_loss():
    one = WorldLM(known=60, width=32, layers=1, heads=2, vocabulary=700, steps=60, batch=16, learning_rate=1e-2)
    model, tokenizer = one.train()
    with torch.no_grad():
        ids, counted = next(Pretraining().batches(tokenizer, ["Sanno was a child in Tavor."] * 4, None, 64))
        assert base_lm.every_token_loss(model, ids, counted) < 0.8 * torch.tensor(float(len(tokenizer))).log()


def test_the_loss_is_that_of_counted_tokens():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
    ids = torch.arange(12).reshape(2, 6)
    counted = torch.tensor([[False, True, False, True, False, False], [False, False, True, True, True, True]])
    logs = model(input_ids=ids).logits.log_softmax(-1)
    each = [-logs[row, place - 1, ids[row, place]] for row, place in counted.nonzero().tolist()]
    assert torch.allclose(base_lm.every_token_loss(model, ids, counted), sum(each) / 6)
