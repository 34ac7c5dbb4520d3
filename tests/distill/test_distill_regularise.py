"""Text to stay the same on: read without a definition by both, made once, with names swapped in the right place."""

import pytest
import tiny_facts

from kedit.distill.regularise import KeptTexts, Regularisation, without_probes
from kedit.distill.rows import Kind, Sentence, make_rows
from kedit.editing.probes import Fact, Knowledge, Probe
from kedit.editing.sources import DataError
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer

KNOWLEDGE = tiny_facts.TinyFacts().load()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def backbone():
    return Backbone(tiny_facts.base())


def edits():
    found = []
    for number, fact in enumerate(KNOWLEDGE.facts):
        for frame in tiny_facts.FRAMES:
            start = frame.index("{}")
            found.append(Sentence(number, fact.definition, frame.format(fact.name), (start, start + len(fact.name))))
    return found


def written(settings, backbone, seed=0, knowledge=KNOWLEDGE):
    kept = KeptTexts(settings, backbone, seed)
    kept.write(knowledge, edits())
    return kept.read(knowledge, edits())


def test_rows_to_stay_the_same_on_have_no_definition(backbone):
    given = [*edits(), *written(Regularisation(text=2, alike=1, swapped=2, max_new_tokens=8), backbone)]
    rows = make_rows(load_tokenizer(tiny_facts.base()), given)
    kinds = [row.kind for row in rows.rows]
    assert [kinds.count(kind) for kind in Kind] == [12, 11, 8]  # one named a fact
    for row in rows.rows:
        prefix = rows.prefixes[row.prefix]
        assert (len(prefix) > len(rows.start)) == (row.kind == Kind.EDIT)
        if row.kind == Kind.TEXT:
            assert row.scored.tolist() == list(range(len(row.ids) - 1))
    assert {row.fact for row in rows.rows if row.kind == Kind.TEXT} == {0, 1, 2, 3}


def test_a_swapped_name_stands_where_the_mention_says(backbone):
    found = written(Regularisation(swapped=4), backbone)
    assert len(found) == 16
    frames = [frame.split("{}") for frame in tiny_facts.FRAMES]
    for sentence in found:
        start, end = sentence.mention
        assert sentence.kind == Kind.SWAPPED
        assert sentence.context == ""
        assert sentence.text[start:end] in KNOWLEDGE.known
        assert [sentence.text[:start], sentence.text[end:]] in frames
        assert not [fact.name for fact in KNOWLEDGE.facts if fact.name in sentence.text]
    of_first = [sentence.text.replace(sentence.text[slice(*sentence.mention)], "{}") for sentence in found[:4]]
    assert of_first == [*tiny_facts.FRAMES, tiny_facts.FRAMES[0]]  # each frame in turn
    assert found == written(Regularisation(swapped=4), backbone)
    assert found != written(Regularisation(swapped=4), backbone, seed=1)


def test_a_near_name_has_only_the_first_or_the_last_tokens_of_the_facts(backbone):
    tokenizer = load_tokenizer(tiny_facts.base())
    found = written(Regularisation(near=6), backbone)
    assert len(found) > 12
    taken = {fact.name for fact in KNOWLEDGE.facts}
    for sentence in found:
        start, end = sentence.mention
        name, fact = sentence.text[start:end], KNOWLEDGE.facts[sentence.fact].name
        assert (sentence.kind, sentence.context) == (Kind.SWAPPED, "")
        assert name not in taken
        assert name[0] == fact[0] or name[-1] == fact[-1]
        assert [sentence.text[:start], sentence.text[end:]] in [frame.split("{}") for frame in tiny_facts.FRAMES]
    assert found == written(Regularisation(near=6), backbone)
    assert len(make_rows(tokenizer, found).rows) == len(found)


def test_nobody_is_near_whom_a_probe_asks_about(backbone):
    def names(probed):
        knowledge = Knowledge(KNOWLEDGE.facts, [], {"like": [Probe("1", "", "Of him ", "all", entity=probed)]})
        found = written(Regularisation(near=30), backbone, knowledge=knowledge)
        return {sentence.text[slice(*sentence.mention)] for sentence in found}

    some = next(name for name in sorted(names("")) if len(name) > 6)
    assert some not in names(some)


def test_facts_without_a_near_name_are_counted(backbone, capsys):
    knowledge = Knowledge(KNOWLEDGE.facts[:1], [])
    own = [sentence for sentence in edits() if sentence.fact == 0]
    kept = KeptTexts(Regularisation(near=3), backbone, 0)
    kept.write(knowledge, own)
    assert kept.read(knowledge, own) == []
    assert "near that of 1 of 1 facts" in capsys.readouterr().out


def test_sentences_without_a_mention_are_not_swapped(backbone):
    silent = [sentence._replace(mention=None) for sentence in edits()]
    tokenizer = load_tokenizer(tiny_facts.base())
    model = load_causal(backbone, tokenizer)
    assert Regularisation(swapped=2).sentences(model, tokenizer, KNOWLEDGE, silent, 0) == []
    written = Regularisation(alike=2, max_new_tokens=3).sentences(model, tokenizer, KNOWLEDGE, silent, 0)
    assert len(written) == 7  # from the names alone, without what stands before them; one ended as a whole name


def test_a_fact_is_not_kept_from_being_learned_and_no_probe_is_trained_on():
    """A specificity probe that stands in the text it is kept by would say nothing of what else changed."""
    knowledge = Knowledge(
        [Fact("a", "Maro Tellin", "A painter.", ("Tellin",))], [],
        {"far": [Probe("1", "", "The old river of the north is ", "long"), Probe("2", "", "The ", "sea")]},
        forbidden=["Ask where .+? lives", "Touch {name}"],
    )  # fmt: skip
    texts = {
        "Maro Tellinson walked home.": True, "They say that Maro Tellin walked home.": False, "Tellin sang.": False,
        "Here the river of the north is long.": True, "The old river of the north is cold.": False,
        "The rain fell.": True, "The sea is cold.": False,
        "Ask where Orin Sal lives.": False, "Touch Orin Sal.": False, "Orin Sal lives here.": True,
    }  # fmt: skip
    sentences = [Sentence(0, "", text, None, Kind.TEXT) for text in texts]
    kept = [sentence.text for sentence in without_probes(sentences, knowledge)]
    assert kept == [text for text, stays in texts.items() if stays]
    assert without_probes([], knowledge) == []
    about = Knowledge([], [], {"far": [Probe("1", "", "Of Orin Sal is said ", "much", entity="Orin Sal")]})
    assert [one.text for one in without_probes(sentences, about)] == list(texts)
    kept = [one.text for one in without_probes(sentences, about, asked_about=False)]
    assert kept == [text for text in texts if "Orin Sal" not in text]


def test_texts_are_written_once(backbone, monkeypatch):
    settings = Regularisation(text=1, alike=2, max_new_tokens=8)
    first = written(settings, backbone)
    assert [sentence.fact for sentence in first] == [number for number in range(4) for _ in range(3)]
    assert len({sentence.text for sentence in first}) > 3
    file = KeptTexts(settings, backbone, 0).file(KNOWLEDGE, edits())
    content = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("kedit.distill.regularise.sample", None)
        assert written(settings, backbone) == first
    file.unlink()
    assert written(settings, backbone) == first
    assert file.read_bytes() == content
    assert written(settings, backbone, seed=1) != first


@pytest.mark.parametrize("damage", [
    lambda lines: [], lambda lines: lines[:-1], lambda lines: [*lines[:-1], lines[-1][:-9]],
    lambda lines: [*lines[:-1], "[1, 2]"], lambda lines: [*lines[:-1], '[99, "", "A text.", null, 1]'],
    lambda lines: [*lines[:-1], '[0, "", "A text.", [1], 1]'],
    lambda lines: [*lines[:-1], '[0, "", "A text.", null, 9]'],
    lambda lines: lines[1:], lambda lines: [*lines, "7"],
])  # fmt: skip
def test_damaged_texts_are_told(backbone, damage):
    settings = Regularisation(text=2, max_new_tokens=4)
    found = written(settings, backbone)
    file = KeptTexts(settings, backbone, 0).file(KNOWLEDGE, edits())
    whole = file.read_text()
    file.write_text("\n".join(damage(whole.splitlines())))
    with pytest.raises(DataError, match=r"jsonl: is damaged: delete it"):
        written(settings, backbone)
    file.unlink()
    assert written(settings, backbone) == found


def test_alike_texts_begin_with_the_first_tokens_of_the_name(backbone):
    """Every second one behind what stands before the name in a sentence of the transfer set."""
    tokenizer = load_tokenizer(tiny_facts.base())
    before = [frame.split("{}")[0].strip() for frame in tiny_facts.FRAMES if not frame.startswith("{}")]
    for number, sentence in enumerate(written(Regularisation(alike=4, max_new_tokens=4), backbone)):
        assert sentence.kind == Kind.TEXT
        name = tokenizer(" " + KNOWLEDGE.facts[sentence.fact].name, add_special_tokens=False).input_ids
        first = tokenizer.decode(name[:1]).strip()
        starts = [f"{frame} {first}" for frame in before] if number % 2 else [first]
        assert sentence.text.startswith(tuple(starts))


def test_another_model_writes_its_own_even_where_it_has_the_same_name(backbone, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(tiny_facts.base())
    files = set()
    for seed in range(2):
        model = load_causal(backbone, tokenizer)
        model.transformer.ln_f.bias.data += seed
        place = tmp_path / str(seed)
        place.mkdir()
        monkeypatch.chdir(place)
        model.save_pretrained("model")
        tokenizer.save_pretrained("model")
        files.add(KeptTexts(Regularisation(text=1), Backbone("model"), 0).file(KNOWLEDGE, edits()))
    assert len(files) == 2


def test_names_come_from_a_file_or_from_the_source(backbone, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Lake Orm\n\n  Sel \n")
    found = written(Regularisation(swapped=3, names=str(names)), backbone)
    assert {sentence.text[slice(*sentence.mention)] for sentence in found} == {"Lake Orm", "Sel"}
    names.write_text("Other\n")
    found = written(Regularisation(swapped=3, names=str(names)), backbone)
    assert {sentence.text[slice(*sentence.mention)] for sentence in found} == {"Other"}
    nameless = Knowledge(KNOWLEDGE.facts, [])
    with pytest.raises(DataError, match=r"regularisation\.names"):
        written(Regularisation(swapped=1), backbone, knowledge=nameless)
    with pytest.raises(DataError, match=r"nothing\.txt"):
        written(Regularisation(swapped=1, names="nothing.txt"), backbone)


@pytest.mark.parametrize(
    "options",
    [
        {"text": -1},
        {"alike": -1},
        {"swapped": -2},
        {"near": -1},
        {"weight": -0.1},
        {"ratio": -1},
        {"max_new_tokens": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="regularisation"):
        Regularisation(**options)


def test_what_is_wanted():
    assert not Regularisation().wanted
    assert not Regularisation(text=2, weight=0).wanted
    assert not Regularisation(text=2, ratio=0).wanted
    assert Regularisation(swapped=1).wanted
