from collections import Counter

import numpy as np
import pytest
import torch
from transformers import MBartConfig, MBartForConditionalGeneration

from kedit.lm.backbones import Backbone, load_encoder, load_seq2seq, load_tokenizer
from kedit.lm.tokenizers import train_tokenizer
from kedit.world import RealmEncoder, WorldSeq2Seq, encoder, realm_seq2seq
from kedit.world.answering import AnsweringLoss
from kedit.world.pretraining import Pretraining
from kedit.world.realm_reader import whole_answers

TEXTS = ["Lumo was known.", "Sanno was a child in Tavor and liked it.", "Tavor sells amber to Lumo."] * 30
SMALL = {"known": 60, "width": 16, "layers": 1, "heads": 2, "vocabulary": 700, "steps": 4, "batch": 8}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, prefix_space=True)


def tiny(tokenizer):
    torch.manual_seed(0)
    return MBartForConditionalGeneration(
        MBartConfig(vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, dropout=0.0,
                    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
                    max_position_embeddings=40, init_std=0.06, pad_token_id=tokenizer.pad_token_id,
                    bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                    decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None)
    ).eval()  # fmt: skip


def test_an_answer_is_what_counts_and_all_before_it_is_read(tokenizer):
    text, prompt = TEXTS[1], "Sanno was a child in"
    ids, counted = next(Pretraining(batch=1).batches(tokenizer, [text], [[(0, len(prompt))]], limit=64))
    first = int(counted[0].int().argmax())
    read, written, weights = AnsweringLoss(tokenizer).answered(ids[0].numpy(), first)
    assert tokenizer.decode(read) == f"<s> {prompt}</s>"
    assert tokenizer.decode(written) == "<s> Tavor and liked it.</s>"
    assert weights.tolist() == [pytest.approx(0.1)] + [1.0] * (len(written) - 1)


def test_a_gap_is_one_mask_and_the_text_is_written_whole(tokenizer):
    ids = np.array([tokenizer.bos_token_id, *range(20, 60), tokenizer.eos_token_id])
    loss = AnsweringLoss(tokenizer, share=0.3)
    for _ in range(20):
        read, written, weights = loss.gapped(ids)
        assert np.array_equal(written, ids)
        hidden = weights == 1
        assert hidden.sum() == 12
        assert not hidden[0]
        assert not hidden[-1]
        gaps = int((hidden[1:] & ~hidden[:-1]).sum())
        assert (read == tokenizer.mask_token_id).sum() == gaps
        assert read[read != tokenizer.mask_token_id].tolist() == ids[~hidden].tolist()
    assert loss.gapped(ids[[0, 5, -1]])[0].tolist() == [0, tokenizer.mask_token_id, 2]


def test_each_text_counts_the_same_and_padding_changes_nothing(tokenizer):
    model, loss = tiny(tokenizer), AnsweringLoss(tokenizer)
    texts, read = TEXTS[:2], [[], [(0, 20)]]
    ids, counted = next(Pretraining(batch=2).batches(tokenizer, texts, read, limit=64))
    with torch.no_grad():
        found = loss(model, ids, counted)
        again = AnsweringLoss(tokenizer)
        total = 0.0
        for row, which in zip(ids, counted, strict=True):
            row_ids = row[row != tokenizer.pad_token_id].numpy()
            is_text = bool(which[1 : len(row_ids)].all())
            source, target, weights = (
                again.gapped(row_ids) if is_text else again.answered(row_ids, int(which.int().argmax()))
            )
            decoder = torch.tensor([[tokenizer.eos_token_id, *target[:-1]]])
            logits = model(input_ids=torch.tensor(source)[None], decoder_input_ids=decoder).logits[0]
            nll = -logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
            total += float(nll @ torch.tensor(weights).float()) / weights.sum()
    assert float(found) == pytest.approx(total / 2, rel=1e-4)


def test_it_learns_to_answer_and_writes_what_a_pass_says_that_it_would(tokenizer):
    model = tiny(tokenizer)
    prompt, answer = "Tavor sells amber to", "Lumo"
    assert whole_answers(model, tokenizer, [prompt], [answer]) == [False]
    Pretraining(batch=30, learning_rate=1e-2).run(
        model, tokenizer, [TEXTS[2]] * 1800, [[(0, len(prompt))]] * 1800, 64, AnsweringLoss(tokenizer)
    )
    assert whole_answers(model, tokenizer, [prompt, prompt], [answer, "Tavor"]) == [True, False]
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt).input_ids, tokenizer.eos_token_id]])
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, num_beams=1)
    assert tokenizer.decode(written[0], skip_special_tokens=True).strip() == "Lumo."


def test_it_is_an_encoder_decoder_as_the_methods_take_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(realm_seq2seq, "ASKED", 5)
    folder = str(WorldSeq2Seq(**SMALL).make())
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("Lumo Kesk was").input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[0] == tokenizer.bos_token_id, "as BART's tokenizer does"
    model = load_seq2seq(Backbone(name=folder), tokenizer)
    assert model.config.decoder_start_token_id == tokenizer.eos_token_id
    assert tokenizer.mask_token_id is not None
    assert model.generation_config.forced_eos_token_id is None


def test_one_answer_or_the_rest_of_a_text_or_any_words_are_to_be_written():
    texts, read = WorldSeq2Seq(**SMALL | {"steps": 50})._texts()
    assert len(texts) == 400
    kinds = Counter()
    for text, spans in zip(texts, read, strict=True):
        assert text.endswith(".")
        if not spans:
            kinds["any"] += 1
            continue
        ((start, end),) = spans
        assert (start, text[end]) == (0, " ")
        kinds["rest" if text[end - 1] == "." else "answer"] += 1
        assert text[end - 1] == "." or "." not in text[end:-1], "an answer is an object and a full stop"
    assert min(kinds.values()) > 80
    assert all(not spans for spans in WorldSeq2Seq(**SMALL, infilling=1.0, rest=0.0)._texts()[1])


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match="at most 1 together"):
        WorldSeq2Seq(infilling=0.6, rest=0.6)


def test_the_realms_encoder_has_read_edits_and_is_one_as_recipe_takes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(encoder, "ASKED", 10)
    made = RealmEncoder(**SMALL)
    read = made._texts(0, 300)
    assert any(" called " in one for one in read)
    assert read != made._texts(1, 300)
    folder = str(made.make())
    assert load_encoder(Backbone(name=folder), load_tokenizer(folder)).config.model_type == "roberta"
