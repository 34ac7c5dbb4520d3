"""Fine-tuning learns its text, trains the part it says, is tuned on other facts, and leaves the model as it was."""

import numpy as np
import pytest
import tiny_facts
import torch

from kedit.distill.baselines import Baselines, Rival, finetune, trained_part
from kedit.distill.judging import Judge
from kedit.editing.probes import Knowledge
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer, switch_dropout_off

KNOWLEDGE = tiny_facts.TinyFacts().load()
SENTENCES = [[frame.format(fact.name) for frame in tiny_facts.FRAMES] for fact in KNOWLEDGE.facts]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny_facts.base())


@pytest.fixture
def model(tokenizer):
    model = load_causal(Backbone(tiny_facts.base()), tokenizer).eval()
    switch_dropout_off(model)
    return model


def copies(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


@torch.no_grad()
def nll(model, texts):
    losses = [model(input_ids=torch.as_tensor(text)[None], labels=torch.as_tensor(text)[None]).loss for text in texts]
    return float(torch.stack(losses).mean())


def rival(model, tokenizer, way="finetune", **options):
    return Rival(model, Judge(tokenizer, KNOWLEDGE), Baselines(**options), way, 0, 64)


def test_its_texts_are_definitions_or_sentences(model, tokenizer):
    texts = rival(model, tokenizer).texts(KNOWLEDGE, SENTENCES)
    assert [len(own) for own in texts] == [1, 1, 1, 1]
    assert texts[2][0][0] == tokenizer.bos_token_id
    assert tokenizer.decode(texts[2][0][1:]) == KNOWLEDGE.facts[2].definition
    texts = rival(model, tokenizer, "finetune_transfer").texts(KNOWLEDGE, [*SENTENCES[:3], []])
    assert [len(own) for own in texts] == [3, 3, 3, 0]
    assert tokenizer.decode(texts[1][2][1:]).strip() == SENTENCES[1][2]
    assert rival(model, tokenizer, "finetune_transfer").texts(KNOWLEDGE, [[], [], [], []]) == []


@pytest.mark.parametrize("way", ["finetune", "finetune_last"])
def test_it_learns_its_text(model, tokenizer, way):
    texts = [text for own in rival(model, tokenizer, way).texts(KNOWLEDGE, SENTENCES) for text in own]
    before, start = copies(model), nll(model, texts)
    passes = list(finetune(model, texts, trained_part(model, way), 0.003, 3, 3, 0, 64))
    assert passes == [1, 2, 3]
    assert nll(model, texts) < start - 0.02
    moved = changed(model, before)
    last = {name for name in before if name.startswith("transformer.h.1.")}
    assert moved <= (last if way == "finetune_last" else set(before))
    assert "transformer.h.1.mlp.c_fc.weight" in moved
    assert way == "finetune_last" or "transformer.wte.weight" in moved


def test_a_step_is_plain_language_modelling(model, tokenizer):
    """One step over packed texts against AdamW on the mean loss of all their tokens, text by text."""
    texts = rival(model, tokenizer, "finetune_transfer").texts(KNOWLEDGE, SENTENCES)[0]
    other = load_causal(Backbone(tiny_facts.base()), tokenizer).eval()
    predicted = sum(len(text) - 1 for text in texts)
    loss = sum(
        torch.nn.functional.cross_entropy(
            other(input_ids=torch.as_tensor(text)[None]).logits[0, :-1], torch.as_tensor(text)[1:], reduction="sum"
        )
        for text in texts
    )
    (loss / predicted).backward()
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    taken = {}

    class Looking(torch.optim.AdamW):
        def step(self, closure=None):
            taken.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Looking)
        list(finetune(model, texts, model.parameters(), 0.1, 1, 32, 0, 64))
    assert taken.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(taken[name], gradient, atol=1e-6, rtol=1e-4)


def test_each_group_begins_from_the_initial_model_which_is_put_back(model, tokenizer):
    before = copies(model)
    made = rival(model, tokenizer)
    texts = made.texts(KNOWLEDGE, SENTENCES)
    apart = made.scores([[0], [1], [2, 3]], texts, 0.003, 2)
    assert not changed(model, before)
    assert [one.facts for one in apart] == [["maro"], ["orin"], ["ella", "tove"]]
    assert set(apart[1].target) == {"orin-home", "orin-work"}
    assert "near-orin" not in apart[1].specificity["neighbours"]
    assert "near-maro" in apart[1].specificity["neighbours"]
    (alone,) = made.scores([[1]], texts, 0.003, 2)
    assert alone == apart[1]
    initial = Judge(tokenizer, KNOWLEDGE).target(model)
    assert alone.target["orin-home"] != initial.target["orin-home"]


def test_a_group_without_texts_is_the_initial_model(model, tokenizer):
    made = rival(model, tokenizer, "finetune_transfer")
    texts = made.texts(KNOWLEDGE, [SENTENCES[0], [], *SENTENCES[2:]])
    scores = made.scores([[0], [1]], texts, 0.003, 1)
    initial = Judge(tokenizer, KNOWLEDGE).target(model, [probe for probe in KNOWLEDGE.probes if probe.fact == "orin"])
    assert scores[1].target == initial.target


def test_the_best_learning_rate_and_passes_are_chosen_on_other_facts(model, tokenizer):
    before = copies(model)
    kept = Knowledge(KNOWLEDGE.validation_facts, KNOWLEDGE.validation_probes)
    rates, judge = [1e-5, 3e-3, 0.3], Judge(tokenizer, kept)
    made = rival(model, tokenizer, learning_rates=rates, passes=3)
    texts = made.texts(kept, [[], []])
    groups = [[0], [1]]
    rate, passes, best = made.tune(kept, groups, texts)
    found = {}
    for one in rates:
        for group in groups:
            fresh = load_causal(Backbone(tiny_facts.base()), tokenizer).eval()
            probes = [probe for probe in kept.probes if probe.fact == kept.facts[group[0]].id]
            for turn in finetune(fresh, texts[group[0]], fresh.parameters(), one, 3, 32, 0, 64):
                found.setdefault((one, turn), []).extend(judge.target(fresh, probes).target.values())
    means = {key: float(np.mean(values)) for key, values in found.items()}
    assert len(means) == 9
    assert best == pytest.approx(min(means.values()), abs=1e-6)
    assert means[rate, passes] == min(means.values())
    made.student.reset()
    assert not changed(model, before)


@pytest.mark.parametrize("options", [{"learning_rates": []}, {"learning_rates": [0.0]}, {"passes": 0}, {"batch": 0}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Baselines(**options)
