import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from kedit.lm.backbones import Backbone, load_encoder, load_tokenizer
from kedit.lm.tokenizers import train_tokenizer
from kedit.world import encoder
from kedit.world.masking import MaskedTokenLoss
from kedit.world.pretraining import Pretraining
from kedit.world.reading_encoder import ReadingEncoder

TEXTS = ["Lumo was known.", "Sanno was a child in Tavor and liked it.", "Tavor sells amber to Lumo."] * 30


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(encoder, "ASKED", 10)
    return ReadingEncoder(known=40, width=16, layers=1, heads=2, vocabulary=700, steps=4, batch=4)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, prefix_space=True)


def tiny(tokenizer):
    torch.manual_seed(0)
    return RobertaForMaskedLM(
        RobertaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                      num_attention_heads=2, max_position_embeddings=40, type_vocab_size=1, hidden_dropout_prob=0.0,
                      attention_probs_dropout_prob=0.0, pad_token_id=tokenizer.pad_token_id)
    )  # fmt: skip


def batch(tokenizer, copies=400):
    return next(Pretraining(batch=copies).batches(tokenizer, [TEXTS[1]] * copies, None, limit=64))


def test_it_is_an_encoder_as_recipe_takes_it(small):
    folder = str(small.make())
    tokenizer = load_tokenizer(folder)
    model = load_encoder(Backbone(name=folder), tokenizer)
    assert model.config.model_type == "roberta"
    assert len(model.get_input_embeddings().weight) == len(tokenizer)
    longest = torch.full((1, encoder.POSITIONS), 7)
    assert model(input_ids=longest).last_hidden_state.shape[1] == encoder.POSITIONS


def test_a_fifth_is_hidden_most_of_it_masked_and_never_a_special_token(tokenizer):
    ids, counted = batch(tokenizer)
    hidden, read = MaskedTokenLoss(tokenizer).hide(ids, counted)
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert not (hidden & special).any()
    assert hidden.sum() / (~special).sum() == pytest.approx(0.18, abs=0.03)  # spans of words overlap
    assert torch.equal(read[~hidden], ids[~hidden])
    masked = read[hidden] == tokenizer.mask_token_id
    assert masked.float().mean() == pytest.approx(0.8, abs=0.03)
    left = read[hidden] == ids[hidden]
    assert left.float().mean() == pytest.approx(0.1, abs=0.03)
    assert not torch.isin(
        read[hidden & (read != tokenizer.mask_token_id)], torch.tensor(tokenizer.all_special_ids)
    ).any()


def test_neighbours_are_hidden_together(tokenizer):
    ids, counted = batch(tokenizer)
    hidden, _ = MaskedTokenLoss(tokenizer).hide(ids, counted)
    beside = hidden[:, 1:] & hidden[:, :-1]
    assert beside.sum() / hidden.sum() > 0.3, "by themselves a fifth would have a hidden neighbour"


def test_a_batch_in_which_nothing_was_drawn_is_told_whole(tokenizer):
    ids, counted = batch(tokenizer, 1)
    hidden, _ = MaskedTokenLoss(tokenizer, share=0.0).hide(ids, counted)
    assert hidden.sum() == counted.sum() - 1, "all but the end"


def test_the_loss_is_that_of_hidden_tokens_and_padding_changes_nothing(tokenizer):
    model = tiny(tokenizer).eval()
    ids, counted = batch(tokenizer, 4)
    padded = torch.cat([ids, torch.full((4, 3), tokenizer.pad_token_id)], 1)
    more = torch.cat([counted, torch.zeros(4, 3, dtype=torch.bool)], 1)
    drawn = MaskedTokenLoss(tokenizer)
    hidden, read = drawn.hide(ids, counted)
    drawn.hide = lambda *_: (torch.cat([hidden, more[:, -3:]], 1), torch.cat([read, padded[:, -3:]], 1))
    with torch.no_grad():
        logits = model(input_ids=read, attention_mask=torch.ones_like(read)).logits
        expected = torch.nn.functional.cross_entropy(logits[hidden], ids[hidden])
        assert torch.allclose(drawn(model, padded, more), expected, atol=1e-5)


def test_training_teaches_to_tell_the_hidden_word(tokenizer):
    model = tiny(tokenizer)
    loss = MaskedTokenLoss(tokenizer)
    with torch.no_grad():
        before = float(loss(model, *batch(tokenizer, 32)))
    Pretraining(batch=18, learning_rate=1e-2).run(model, tokenizer, TEXTS * 48, limit=64, loss=loss)
    with torch.no_grad():
        after = float(loss(model, *batch(tokenizer, 32)))
    assert after < 1 < 4 < before
