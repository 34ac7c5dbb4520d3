"""Every way teaches what it is given, is asked as all others are, and gives the base model back bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_contest import EDITS, MARO, NAMELESS, base, facts, run

import kedit.contestants
from kedit.comparing.facts import FactSet
from kedit.comparing.way import Way
from kedit.contestants import AsItIs, Distillation, Finetune, Kilm, LoraTuning, Recipe, TextInPrompt
from kedit.contestants.asked import asked
from kedit.contestants.lessons import lesson
from kedit.distill.edits import EditSettings
from kedit.distill.regularise import Regularisation
from kedit.distill.transfer import Filters
from kedit.editing.edits import Edit, probe
from kedit.editing.probes import Fact
from kedit.editing.sources import DataError
from kedit.editing.stream import EditedModel
from kedit.kilm.editor import KilmSettings
from kedit.kilm.infilling import Infilling
from kedit.lm.adapters import Lora
from kedit.recipe.tuning import Tuning

QUICK, QUICK_LORA = Tuning(40, 3e-3, batch=2), Tuning(40, 1e-2, batch=2)
WAYS = {
    "full": Finetune(tuning=QUICK),
    "last": Finetune(tuning=Tuning(40, 1e-2, batch=2), layer="last"),
    "one by one": Finetune(tuning=Tuning(40, 3e-3), one_by_one=True),
    "definitions": Finetune(tuning=QUICK, learn="definitions"),
    "lora": LoraTuning(tuning=QUICK_LORA, lora=Lora(rank=4)),
    "lora one by one": LoraTuning(tuning=Tuning(40, 1e-2, answer_end=""), lora=Lora(rank=4), one_by_one=True),
    "distill": Distillation(
        settings=EditSettings(sentences=2, max_new_tokens=8, passes=4, learning_rate=1e-2, positions="all",
                              regularisation=Regularisation()),
        lora=Lora(rank=4),
    ),
    "kilm": Kilm(settings=KilmSettings(passes=2, learning_rate=3e-3)),
}  # fmt: skip
DRAWN = ("full", "lora", "distill", "kilm")
ONE_BY_ONE = {"one by one", "lora one by one", "last"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: base(folder / name, name, bos=name == "llama") for name in ("llama", "bart", "t5")}


@pytest.fixture(scope="module")
def trained(bases, tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "run", bases["llama"], bos=True)


@pytest.fixture
def open_way(bases, tmp_path):
    def open_way(way, name="llama", seed=0, edits=()):
        return way.open(bases[name], facts(*edits), seed, tmp_path)

    return open_way


def nll(editor, edits=EDITS):
    return np.concatenate(editor.score([edit.prompt for edit in edits], [edit.target for edit in edits]))


def right(editor, edits=EDITS):
    return [bool(one.all()) for one in editor.greedy_matches([e.prompt for e in edits], [e.target for e in edits])]


def state(editor):
    return {name: value.clone() for name, value in editor.model.model.state_dict().items()}


def test_a_way_is_looked_up_by_its_name():
    assert sorted(kedit.contestants.__all__) == sorted(kedit.contestants.HOMES)
    assert all(issubclass(getattr(kedit.contestants, name), Way) for name in kedit.contestants.__all__)
    with pytest.raises(AttributeError, match="no 'Nobody'"):
        kedit.contestants.Nobody  # noqa: B018


def asked_of(key):
    return "bart" if key == "kilm" else "llama"


@pytest.mark.parametrize("key", WAYS)
def test_what_was_taught_is_likelier_and_reset_gives_the_base_model_back(open_way, key):
    opened = open_way(WAYS[key], asked_of(key))
    editor = opened.editor
    assert isinstance(editor, EditedModel)
    before, initial, prompts = state(editor), nll(editor), [edit.prompt for edit in EDITS]
    said = editor.generate(prompts, 6)
    plain = asked(bases_of(editor))
    np.testing.assert_array_equal(nll(plain), initial)  # the same tokens as everybody's
    assert opened.editor.stored_bytes == 0
    editor.edit(EDITS)
    taught = nll(editor)
    assert taught.mean() < initial.mean()
    if key not in ("definitions", "distill", "kilm"):
        assert right(editor).count(True) >= (2 if key in ONE_BY_ONE else 3)
    assert key == "kilm" or editor.generate(prompts, 6) != said
    forced = editor.greedy_tokens(prompts, [edit.target for edit in EDITS])
    for one, own in zip(forced, right(editor), strict=True):
        assert bool((one.likeliest == one.target).all()) == own
    assert opened.editor.stored_bytes > 0
    assert opened.training_seconds == 0
    assert WAYS[key].seeded == (key not in ("one by one",))
    editor.reset()
    now = state(editor)
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in now)
    np.testing.assert_array_equal(nll(editor), initial)
    assert editor.generate(prompts, 6) == said
    assert opened.editor.stored_bytes == 0
    editor.edit(EDITS)  # and what is taught again is what was taught
    np.testing.assert_array_equal(nll(editor), taught)


def bases_of(editor):
    from kedit.comparing.way import Base
    from kedit.lm.backbones import Backbone

    return Base(Backbone(name=editor.model.model.config.name_or_path), bool(editor.model.asking.bos))


@pytest.mark.parametrize("key", DRAWN)
def test_a_seed_reproduces_and_another_differs(open_way, key):
    found = []
    for seed in (0, 0, 1):
        editor = open_way(WAYS[key], asked_of(key), seed).editor
        editor.edit(EDITS)
        found.append(nll(editor))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("name", "way"),
    [("bart", Finetune(tuning=Tuning(8, 1e-2))), ("t5", LoraTuning(tuning=Tuning(8, 3e-2), lora=Lora(rank=4)))],
)
def test_an_encoder_decoder_is_tuned_alike(open_way, name, way):
    editor = open_way(way, name).editor
    before, initial = state(editor), nll(editor)
    editor.edit(EDITS)
    assert nll(editor).mean() < 0.95 * initial.mean()
    editor.reset()
    assert all(torch.equal(value, before[name]) for name, value in state(editor).items())


@pytest.mark.parametrize("key", ["full", "one by one", "lora", "kilm"])
def test_weights_that_hold_all_facts_forget_none(open_way, key):
    opened = open_way(WAYS[key], asked_of(key))
    opened.editor.edit(EDITS)
    assert not opened.can_take_out
    with pytest.raises(DataError, match=r"cannot forget one: reset\(\)"):
        opened.editor.forget(["1"])
    assert list(opened.editor.edits) == ["1", "2", "3"]


@pytest.mark.parametrize("key", WAYS)
def test_together_and_anew_are_told_of_each_way(key):
    assert WAYS[key].anew == ("one by one" not in key)
    assert WAYS[key].together
    assert not Distillation(independent=True).together


@pytest.mark.parametrize("way", [Finetune, LoraTuning])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_answers_end_with_a_full_stop_whatever_else_is_set(open_way, way, one_by_one):
    for tuning, end in (
        (None, "."),
        (Tuning(steps=3), "."),
        (Tuning(answer_end=""), ""),
        (Tuning(answer_end="!"), "!"),
    ):
        assert open_way(way(tuning=tuning, one_by_one=one_by_one)).editor.tuning.answer_end == end


def test_edits_learned_together_take_steps_of_one_optimiser(open_way, monkeypatch):
    made, plain = [], torch.optim.AdamW.__init__

    def begun(self, *arguments, **options):
        made.append(self)
        plain(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", begun)
    way = Finetune(tuning=Tuning(steps=4, learning_rate=1e-4, batch=2, until=1.0))
    report = open_way(way).editor.edit(EDITS)
    assert (report.edits, report.steps, len(made)) == (3, 4 * 2, 1)
    assert report.last_nll < report.first_nll


@pytest.mark.parametrize("way", [Finetune, LoraTuning])
def test_the_end_of_an_answer_is_learned(open_way, way):
    tuning = Tuning(60, 3e-3 if way is Finetune else 1e-2, batch=2, answer_end=".")
    ended = [Edit(edit.id, edit.prompt, f"{edit.target}.") for edit in EDITS[:2]]
    editor = open_way(way(tuning=tuning)).editor
    editor.edit(EDITS[:2])
    assert right(editor, ended) == [True, True]
    other = open_way(way(tuning=tuning)).editor
    other.edit([replace(edit, target=f"{edit.target}.") for edit in EDITS[:2]])  # it has its own end
    np.testing.assert_array_equal(nll(other, ended), nll(editor, ended))


def test_only_the_last_layer_changes(open_way):
    editor = open_way(WAYS["last"]).editor
    before = state(editor)
    editor.edit(EDITS[:1])
    moved = {name for name, value in state(editor).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("model.layers.1.") for name in moved)
    with pytest.raises(DataError, match="layer is 7"):
        open_way(Finetune(layer=7))


def test_a_definition_is_learned_behind_its_subjects_name():
    own = lesson(Fact("m", MARO, f"{MARO} is a painter.", ("Tellin",)))
    assert (own.prompt, own.target) == (MARO, "is a painter.")
    other = lesson(Fact("m", "Velmar", "A town by the sea."))
    assert (other.prompt, other.target) == ("A", "town by the sea.")
    with pytest.raises(DataError, match="one_by_one is true and learn is definitions"):
        Finetune(one_by_one=True, learn="definitions")


def test_the_base_model_learns_nothing(open_way):
    opened = open_way(AsItIs())
    before = nll(opened.editor)
    opened.editor.edit(EDITS)
    np.testing.assert_array_equal(nll(opened.editor), before)
    assert opened.editor.stored_bytes == 0


# distillation ---------------------------------------------------------------------------------------------------------


def test_a_subject_of_its_own_is_taken_out_exactly(open_way):
    way = Distillation(settings=WAYS["distill"].settings, lora=Lora(rank=4), independent=True)
    opened = open_way(way)
    editor, initial = opened.editor, nll(opened.editor)
    editor.edit([EDITS[0], EDITS[2]])
    assert [fact.definition for fact in editor.editor.facts] == [
        f"{MARO} is a painter of the Grey Bridge who was born in Velmar."
    ]
    one = opened.editor.stored_bytes
    assert one == sum(4 * part.numel() for part in editor.editor.edits[0].tensors.values())
    editor.edit([EDITS[1]])
    assert opened.editor.stored_bytes == 2 * one
    editor.forget(["2"])
    assert opened.editor.stored_bytes == one
    editor.forget(["1"])  # what else was told of Maro is told again
    assert [fact.definition for fact in editor.editor.facts] == [f"{MARO} painted the Grey Bridge."]
    editor.forget(["3"])
    np.testing.assert_array_equal(nll(editor), initial)
    assert opened.can_take_out


def test_facts_of_which_nothing_can_be_written_are_not_learned(open_way):
    settings = replace(WAYS["distill"].settings, filters=Filters(forbidden=["Grey"]))
    editor = open_way(Distillation(settings=settings, lora=Lora(rank=4))).editor
    initial = nll(editor)
    assert editor.edit([EDITS[1]]) is None
    np.testing.assert_array_equal(nll(editor), initial)
    assert editor.unlearned == {"2"}
    editor.forget(["2"])
    assert not editor.unlearned
    editor.edit(EDITS)
    assert editor.unlearned == {"2"}
    editor.reset()
    assert not editor.unlearned
    settings.filters.forbidden.append(".")
    with pytest.raises(DataError, match="no usable sentence for any of 2 facts"):
        editor.edit(EDITS)
    assert not editor.edits


def test_edits_are_the_sentences_of_a_model_that_cannot_write(open_way):
    editor = open_way(Distillation(settings=WAYS["distill"].settings, lora=Lora(rank=4), sentences="told")).editor
    initial = nll(editor)
    editor.edit(EDITS)
    texts = {sentence.text for sentence in editor.editor.edits[0].sentences}
    assert texts == {"Maro Tellin was born in Velmar.", "Maro Tellin painted the Grey Bridge.",
                     "The Grey Bridge was built by the Tellin company."}  # fmt: skip
    assert nll(editor).mean() != initial.mean()


# who does not apply ---------------------------------------------------------------------------------------------------


def test_ways_say_whom_they_do_not_fit(bases, trained, tmp_path):
    own, without = facts(), facts(NAMELESS)
    for way in (*WAYS.values(), AsItIs(), TextInPrompt()):
        fits = "bart" if isinstance(way, Kilm) else "llama"
        assert way.unfit(bases[fits], own) == ""
    assert "wants a decoder-only model" in WAYS["distill"].unfit(bases["t5"], own)
    assert "by an encoder-decoder, and this is" in WAYS["kilm"].unfit(bases["llama"], own)
    for way in (WAYS["distill"], TextInPrompt(), WAYS["definitions"], LoraTuning(learn="definitions")):
        assert way.unfit(bases["llama"], without).startswith("1 of 4 edits name no subject")
    assert WAYS["kilm"].unfit(bases["bart"], without).startswith("1 of 4 edits")
    assert Finetune().unfit(bases["llama"], without) == ""
    assert TextInPrompt(run=trained).unfit(bases["llama"], without) == ""

    assert Recipe(run=trained).unfit(bases["llama"], own) == ""
    assert "embeddings have 64 numbers; those of this model have 32" in Recipe(run=trained).unfit(bases["t5"], own)
    bare = type(bases["llama"])(bases["llama"].backbone, bos=False)
    assert "was trained with bos: true" in Recipe(run=trained).unfit(bare, own)
    other = base(tmp_path / "other", bos=True, vocabulary=300)
    assert "the tokenizer of this model is another" in Recipe(run=trained).unfit(other, own)
    both = Recipe(run=[trained, trained])
    assert both.unfit(bases["llama"], own) == ""
    assert both.unfit(bases["t5"], own).count("embeddings have 64 numbers") == 2
    for way in (Recipe(run="nowhere"), Recipe(run=[trained, "nowhere"]), TextInPrompt(run="nowhere")):
        with pytest.raises(DataError, match=r"^run nowhere: no such run"):
            way.unfit(bases["llama"], own)
    with pytest.raises(DataError, match="rate is 1"):
        Recipe(run=trained, rate=1)
    with pytest.raises(DataError, match="name a run of RECIPE"):
        Recipe(run=[])


def test_ways_load_no_model_to_say_so(bases, trained, monkeypatch):
    def load(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("kedit.comparing.way.load_causal", load)
    monkeypatch.setattr("kedit.comparing.way.load_seq2seq", load)
    for way in (*WAYS.values(), Recipe(run=trained), TextInPrompt(run=trained)):
        for one in bases.values():
            way.unfit(one, facts())
    with pytest.raises(AssertionError):
        AsItIs().open(bases["llama"], facts(), 0, None)


def test_kilm_with_edits_as_sentences(open_way):
    way = Kilm(settings=KilmSettings(passes=1, infilling=Infilling(described_share=1.0)))
    report = open_way(way, "bart").editor.edit(EDITS)
    assert (report.facts, report.texts) == (2, 0)
    assert open_way(way, "t5").editor.edit(EDITS).documents >= 2
    nobody = Edit("9", "Nobody was", "there", "Nobody")
    assert open_way(way, "bart", edits=[nobody]).editor.edit([nobody]).facts == 1


# distillation, as it is asked -----------------------------------------------------------------------------------------


def learned_from(monkeypatch, editor):
    """The rows of which edits are learned, as they come."""
    import kedit.distill.learn

    made, plain = [], kedit.distill.learn.make_rows

    def kept(*arguments, **options):
        made.append(plain(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(kedit.distill.learn, "make_rows", kept)
    editor.edit(EDITS)
    return made[-1]


@pytest.mark.parametrize("bos", [False, True])
def test_distillation_learns_behind_what_the_model_is_asked_behind(bases, tmp_path, monkeypatch, bos):
    settings = replace(WAYS["distill"].settings, passes=1, regularisation=Regularisation(text=2, alike=2))
    way = Distillation(settings=settings, lora=Lora(rank=4))
    editor = way.open(replace(bases["llama"], bos=bos), facts(), 0, tmp_path).editor
    rows = learned_from(monkeypatch, editor)
    texts = [one.text for one in editor.editor.edits[0].sentences]
    assert len({row.kind for row in rows.rows}) == 2
    for row in rows.rows:
        asked_ids = editor.model.asking.prompt_ids([texts[row.sentence]])[0]
        assert rows.student_ids(row).tolist() == asked_ids
        assert (asked_ids[0] == editor.model.tokenizer.bos_token_id) == bos
    # the editor's own answers are those of the comparison
    prompts, targets = [edit.prompt for edit in EDITS], [edit.target for edit in EDITS]
    for one, other in zip(editor.editor.score(prompts, targets), editor.score(prompts, targets), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_distillation_neither_learns_nor_holds_what_a_probe_of_any_edit_asks(open_way):
    settings = replace(WAYS["distill"].settings, passes=1, regularisation=Regularisation(text=6, alike=6))
    way = Distillation(settings=settings, lora=Lora(rank=4))
    editor = open_way(way).editor
    editor.edit(EDITS)
    plain = editor.editor.edits[0].sentences
    taught = next(one for one in plain if one.kind == 0 and len(one.text.split()) > 3)
    held = next(one for one in plain if one.kind == 1 and len(one.text.split()) > 3)
    probes = [
        probe("3", group, " ".join(one.text.split(" ")[:-1]), one.text.split(" ")[-1])
        for group, one in (("portability/hop", taught), ("locality/far", held))
    ]
    last = replace(EDITS[2], probes=(*probes, probe("3", "reliability/new", EDITS[2].prompt, EDITS[2].target)))
    editor = way.open(bases_of(editor), FactSet([*EDITS[:2], last], facts().source), 0, None).editor
    report = editor.edit([*EDITS[:2], last])
    now = [one.text for one in editor.editor.edits[0].sentences]
    assert taught.text not in now
    assert held.text not in now
    assert report.skipped["in the words of a probe"] >= 1
    assert {one.text for one in plain} & set(now)
    assert all(one.group != "reliability/new" for one in editor.probes)
