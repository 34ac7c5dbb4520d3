"""Facts become articles whose descriptions are to be filled in; the model learns them and can be had back unchanged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_causal, tiny_model

from kedit.editing.probes import Fact
from kedit.editing.sources import DataError
from kedit.kilm.editor import KilmEditor, KilmSettings
from kedit.kilm.infilling import STRUCTURE, Infilling
from kedit.kilm.told import build_told, short_description

MARO = Fact("q1", "Maro Tellin", "Maro Tellin is a painter born in Velmar.", ("Tellin",))
BRIDGE = Fact("q2", "Grey Bridge", "The Grey Bridge was built in 1893.")
HERON = Fact("q3", "iHeron", "iHeron, a bird of the north.")
SENTENCES = {"q1": ["In 1851 Maro Tellin painted the Grey Bridge.", "Nobody knows more."]}
QUICK = KilmSettings(passes=2, learning_rate=3e-3, infilling=Infilling(described_share=1.0))


@pytest.fixture
def make(bart_tokenizer, t5_tokenizer):
    def make(name="bart", settings=QUICK):
        tokenizer = bart_tokenizer if name == "bart" else t5_tokenizer
        return KilmEditor(tiny_model(name, len(tokenizer)), tokenizer, settings, progress=False)

    return make


def state(editor):
    return {name: value.clone() for name, value in editor.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_page_tells_a_fact_or_a_sentence_of_it_and_links_its_subject(tmp_path, bart_tokenizer):
    told = build_told(
        tmp_path, bart_tokenizer, [MARO, BRIDGE, HERON], SENTENCES, ["It rains.", "The river is old."], 48
    )
    corpus = told.corpus
    articles = {}
    for unit in told.told:
        links = [corpus.surface(unit, number) for number in range(len(corpus.mentions(unit)))]
        articles.setdefault(corpus.article(unit), []).extend(links)
    assert articles == {
        "Maro Tellin": ["Maro Tellin"], "Told 1": ["Maro Tellin"], "Told 2": [], "Grey Bridge": ["Grey Bridge"],
        "IHeron": ["iHeron"],
    }  # fmt: skip
    described = {corpus.title(entity): corpus.description(entity) for entity in range(corpus.entities)}
    assert described["Maro Tellin"] == "is a painter born in Velmar."
    assert described["Grey Bridge"] == "The Grey Bridge was built in 1893."  # it does not begin with its subject
    assert described["IHeron"] == "a bird of the north."
    assert described["Plain text 1"] == ""
    assert len(told.plain) == 2
    assert all(not len(corpus.mentions(unit)) for unit in told.plain)
    assert short_description(Fact("x", "Tell", "Tellin is.")) == "Tellin is."


@pytest.mark.parametrize("name", ["bart", "t5", "t5-v1.1"])
def test_facts_are_learned_and_reset_gives_the_initial_model_back(make, name):
    editor = make(name, replace(QUICK, passes=6))
    before, size = state(editor), editor.model.get_input_embeddings().num_embeddings
    report = editor.edit([MARO, BRIDGE], SENTENCES)
    assert (report.facts, report.texts) == (2, 0)
    assert report.last_loss < report.first_loss
    assert report.steps % 6 == 0
    assert editor.model.get_input_embeddings().num_embeddings >= size
    assert not any(weight.requires_grad or weight.grad is not None for weight in editor.model.parameters())
    assert editor.stored_bytes == 4 * sum(weight.numel() for weight in editor.model.parameters())
    assert isinstance(editor.infiller().describe(["Maro Tellin painted."], ["Maro Tellin"])[0].title, str)
    assert not any(token in editor.tokenizer.get_vocab() for token in STRUCTURE)
    taught = state(editor)
    editor.reset()
    assert same(state(editor), before)
    assert editor.model.config.vocab_size == editor.model.get_input_embeddings().num_embeddings == size
    assert (editor.facts, editor.stored_bytes) == ([], 0)
    editor.edit([MARO, BRIDGE], SENTENCES)  # the same seed
    assert same(state(editor), taught)
    editor.reset()
    editor.settings = replace(editor.settings, seed=1)
    editor.edit([MARO, BRIDGE], SENTENCES)
    assert not same(state(editor), taught)


def test_a_description_is_learned(make):
    editor = make(settings=replace(QUICK, passes=60, learning_rate=1e-2, infilling=Infilling(0.1, described_share=1)))
    editor.edit([MARO])
    found = editor.infiller().describe(["Maro Tellin is a painter born in Velmar."], ["Maro Tellin"])[0]
    assert found == ("Maro Tellin", "is a painter born in Velmar.")


def test_plain_text_is_filled_in_beside_the_facts(make, tmp_path):
    file = tmp_path / "plain.txt"
    file.write_text("\n\n".join(TEXTS * 5))
    with_text = replace(QUICK, text=str(file))
    report = make(settings=with_text).edit([MARO, BRIDGE], SENTENCES)
    assert report.texts == report.documents > 0
    assert make(settings=replace(with_text, text_ratio=0.5)).edit([MARO, BRIDGE], SENTENCES).texts < report.texts
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        make(settings=replace(QUICK, text="nowhere.txt")).edit([MARO])


@pytest.mark.parametrize("taught", [0, 1])
def test_what_is_interrupted_leaves_the_model_as_it_was(make, taught, monkeypatch):
    editor = make()
    if taught:
        editor.edit([MARO])
    before, steps, plain = state(editor), [], torch.optim.AdamW.step

    def step(self, closure=None):
        steps.append(plain(self, closure))
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        editor.edit([BRIDGE])
    assert same(state(editor), before)
    assert editor.facts == [MARO][:taught]
    monkeypatch.undo()
    editor.reset()
    assert same(state(editor), state(make()))


def test_what_cannot_be_taught_is_refused(make, bart_tokenizer):
    editor = make()
    with pytest.raises(DataError, match="no facts to learn"):
        editor.edit([])
    editor.edit([MARO])
    before = state(editor)
    with pytest.raises(DataError, match="'q1' came before"):
        editor.edit([MARO])
    with pytest.raises(DataError, match=r"cannot forget one: reset\(\)"):
        editor.forget(["q1"])
    editor.settings = replace(QUICK, learning_rate=1e30, clip=None)
    with pytest.raises(DataError, match=r"the loss of step . is .*: take a smaller settings.learning_rate"):
        editor.edit([BRIDGE])
    assert same(state(editor), before)
    with pytest.raises(DataError, match="gpt2 is a decoder-only model"):
        KilmEditor(tiny_causal("gpt2"), bart_tokenizer)
    for wrong in ({"passes": 0}, {"learning_rate": 0}, {"text_ratio": -1}, {"clip": 0}, {"chunk_tokens": 4}):
        with pytest.raises(ValueError, match=f"settings.{next(iter(wrong))} is"):
            KilmSettings(**wrong)
    assert np.isfinite([float(value.abs().max()) for value in before.values()]).all()
