import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kedit.lm.tokenizers import train_tokenizer
from kedit.world import reading_lm
from kedit.world.pretraining import Pretraining, next_token_loss
from kedit.world.reading_lm import ReadingLM, accuracy

TEXTS = ["Lumo was known.", "Sanno was a child in Tavor and liked it.", "Tavor sells amber to Lumo."] * 30


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(reading_lm, "ASKED", 10)
    return ReadingLM(known=40, width=16, layers=1, heads=2, vocabulary=700, steps=4, batch=4)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, prefix_space=True)


def tiny(tokenizer, width=32):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=1,
                    num_attention_heads=2, pad_token_id=tokenizer.pad_token_id)
    )  # fmt: skip


def test_its_quality_tells_what_it_knows_and_reads(small):
    quality = json.loads((small.make() / "quality.json").read_text())
    assert {"known_accuracy", "read_accuracy", "aside_accuracy", "known_nll", "alone_nll"} < quality.keys()


def test_documents_are_padded_on_the_right_and_begin_as_behind_a_space(tokenizer):
    batches = list(Pretraining(batch=4).batches(tokenizer, TEXTS, None, limit=256))
    assert sum(len(ids) for ids, _ in batches) == len(TEXTS)
    texts = []
    for ids_BL, counted_BL in batches:
        assert (ids_BL[:, 0] == tokenizer.bos_token_id).all()
        for row, counted in zip(ids_BL, counted_BL, strict=True):
            end = row.tolist().index(tokenizer.eos_token_id)
            assert (row[end + 1 :] == tokenizer.pad_token_id).all()
            assert counted.tolist() == [False] + [True] * end + [False] * (len(row) - end - 1)
            texts.append(tokenizer.decode(row[1:end]))
    assert sorted(texts) == sorted(f" {one}" for one in TEXTS), "a name is the same tokens wherever it stands"


def test_what_nothing_foretells_is_read_and_not_predicted(tokenizer):
    texts = ["Sanno was a child in Tavor and liked it."] * 4
    spans = [[(0, 5), (21, 26)]] * 4
    ids_BL, counted_BL = next(Pretraining(batch=4).batches(tokenizer, texts, spans, limit=256))
    for ids, counted in zip(ids_BL, counted_BL, strict=True):
        assert tokenizer.decode(ids[1:-1]) == " Sanno was a child in Tavor and liked it."
        assert tokenizer.decode(ids[counted]) == " was a child in and liked it.</s>"


def test_a_long_document_is_cut(tokenizer):
    ids_BL, counted_BL = next(Pretraining(batch=4).batches(tokenizer, [" ".join(TEXTS)] * 4, None, limit=16))
    assert ids_BL.shape == counted_BL.shape == (4, 16)


def test_the_loss_is_that_of_counted_tokens(tokenizer):
    model = tiny(tokenizer).eval()
    bare = torch.tensor([[tokenizer.bos_token_id, 270, 280, tokenizer.eos_token_id]])
    padded = torch.cat([bare, torch.full((1, 3), tokenizer.pad_token_id)], 1)
    with torch.no_grad():
        log_probs = model(input_ids=bare).logits[0, :-1].log_softmax(-1)
        nll = -log_probs[torch.arange(3), bare[0, 1:]]
        for ids in (bare, padded):
            counted = (ids != tokenizer.pad_token_id) & (ids != 280)
            assert torch.allclose(next_token_loss(model, ids, counted), nll[[0, 2]].mean(), atol=1e-5)


def test_training_lowers_the_loss_and_greedy_decoding_finds_what_was_learned(tokenizer, capsys):
    model = tiny(tokenizer)
    prompts, answers = ["Sanno was a child in", "Tavor sells"], ["Tavor and liked it", "amber to Lumo"]
    assert accuracy(model, tokenizer, prompts, answers) == 0
    Pretraining(batch=9, learning_rate=1e-2).run(model, tokenizer, TEXTS * 8)
    assert not model.training
    assert accuracy(model, tokenizer, prompts, answers) == 1
    assert accuracy(model, tokenizer, prompts, ["Tavor", "Lumo"]) == 0, "the answer ends where it ends"
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt).input_ids]])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(new[0, ids.shape[1] :]).startswith(f" {answer}."), "as `accuracy` says"
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("base model: step 80/80, loss ")
