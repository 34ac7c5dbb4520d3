import json
from itertools import islice

import pytest
import torch

from kedit.world import base_lm
from kedit.world.base_lm import WorldLM


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(base_lm, "ASKED", 20)
    return WorldLM(known=60, width=16, layers=1, heads=2, vocabulary=700, steps=4, batch=4)


def test_its_quality_tells_what_definitions_are_worth(small):
    quality = json.loads((small.make() / "quality.json").read_text())
    assert quality["gain"] == pytest.approx(quality["new_nll"] - quality["defined_nll"], abs=1e-3)


def test_documents_are_padded_on_the_right_and_begin_as_behind_a_space(small):
    _, tokenizer = small.train()
    texts = ["Lumo was known.", "Sanno was a child in Tavor and liked it."] * 40
    batches = list(islice(small._batches(tokenizer, texts), 100))
    assert sum(len(batch) for batch in batches) == len(texts)
    starts = set()
    for batch in batches:
        assert (batch[:, 0] == tokenizer.bos_token_id).all()
        for row in batch:
            end = row.tolist().index(tokenizer.eos_token_id)
            assert (row[end + 1 :] == tokenizer.pad_token_id).all()
            starts.add(tokenizer.decode(row[1:end])[0])
    assert starts == {" "}, "a name is the same tokens at the beginning and inside a sentence"


def test_training_lowers_the_loss(monkeypatch, tmp_path):
    one = WorldLM(known=60, width=32, layers=1, heads=2, vocabulary=700, steps=60, batch=16, learning_rate=1e-2)
    model, tokenizer = one.train()
    with torch.no_grad():
        ids = next(one._batches(tokenizer, ["Sanno was a child in Tavor."] * 4))
        assert base_lm._loss(model, ids, tokenizer.pad_token_id) < 0.8 * torch.tensor(float(len(tokenizer))).log()
