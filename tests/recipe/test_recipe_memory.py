"""A memory stores and decides: what it returned counts at once, what is bad leaves it as it was, and its margin keeps
the wanted rate over what is stored.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_memory import BRIDGE, EDITS, OTHERS, PAINTER, TOWN, make_base, make_run

from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.recipe.editor import open_memory
from kedit.recipe.encoding import encode_keys, encode_queries, like_length
from kedit.recipe.frozen import FrozenModel
from kedit.recipe.segments import RepositoryError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "gpt2")


@pytest.fixture
def memory(base, tmp_path):
    make_run(tmp_path / "run", base)
    memory = open_memory(tmp_path / "run", device="cpu").memory
    yield memory
    memory.close()


@contextmanager
def opened(folder, **options):
    memory = open_memory(folder, device="cpu", **options).memory
    try:
        yield memory
    finally:
        memory.close()


def fired(memory, *prompts):
    return [one.edit.id if one.fired else None for one in memory.decide(prompts)]


def test_every_index_decides_alike_by_the_similarity_of_what_stands(base, tmp_path):
    numbered = [Edit(f"{w}{k}", f"The {w} bridge of the {k}th harbour was built in", str(k)) for k in range(60)
                for w in ("grey", "old")]  # fmt: skip
    make_run(tmp_path / "run", base, sentinel=0.5)
    with opened(tmp_path / "run") as memory:
        memory.add(numbered)
        memory.forget(["grey3", "old7"])
        standing = [stored.edit for stored in memory.repository.list(0, 1000)]
        queries_QD, _ = encode_queries(memory.networks, memory.texts, OTHERS)
        keys_ND = encode_keys(memory.networks, memory.texts, standing)
        best_Q = memory.networks.similarities(queries_QD, keys_ND).amax(1)
        exact = memory.decide(OTHERS)
        assert [one.similarity for one in exact] == pytest.approx(best_Q.tolist(), abs=1e-6)
    with opened(tmp_path / "run", faiss="Flat") as memory:
        for one, other in zip(memory.decide(OTHERS), exact, strict=True):
            assert one.edit.id == other.edit.id
            assert one.similarity == pytest.approx(other.similarity, abs=1e-6)


# store and decide -----------------------------------------------------------------------------------------------------


def test_a_question_means_the_edit_of_its_prompt_and_others_mean_none(memory):
    assert fired(memory, BRIDGE.prompt) == [None]
    report = memory.add(EDITS)
    assert (report.ids, report.written, report.replaced, report.known) == (("bridge", "painter", "town"), 3, 0, 0)
    assert fired(memory, TOWN.prompt, OTHERS[0], f"  {BRIDGE.prompt}\n", OTHERS[1]) == ["town", None, "bridge", None]


def test_a_decision_tells_the_nearest_edit_and_its_numbers(memory):
    memory.add(EDITS)
    queries_QD, threshold_Q = encode_queries(memory.networks, memory.texts, OTHERS)
    similarity_QN = memory.networks.similarities(queries_QD, torch.from_numpy(memory.keys(EDITS)))
    for place, decision in enumerate(memory.decide(OTHERS)):
        assert decision.edit.edit.text == EDITS[int(similarity_QN[place].argmax())].text
        assert decision.similarity == pytest.approx(float(similarity_QN[place].max()), abs=1e-6)
        assert decision.threshold == pytest.approx(float(threshold_Q[place]), abs=1e-6)
        assert decision.score == decision.similarity - decision.threshold
        assert decision.margin == memory.gate.margin


def test_without_edits_nothing_is_near(memory):
    (decision,) = memory.decide(["Velmar is"])
    assert (decision.edit, decision.fired, decision.similarity) == (None, False, -np.inf)
    assert memory.decide([]) == []


def test_keys_and_queries_do_not_hang_on_their_batch(memory):
    edits = [Edit(str(n), " ".join(["Velmar"] * (1 + n % 40)) + f" {n}", "x") for n in range(600)]
    together = encode_keys(memory.networks, memory.texts, edits)
    for number in (0, 1, 37, 599):
        alone = encode_keys(memory.networks, memory.texts, [edits[number]])[0]
        assert torch.allclose(together[number], alone, atol=1e-6)
    queries_QD, _ = encode_queries(memory.networks, memory.texts, [edit.prompt for edit in edits])
    assert torch.equal(queries_QD, together)


def test_texts_of_like_length_go_together(memory):
    texts = ["a" * (1 + n % 7) for n in range(700)] + ["word " * 30_000]
    batches = list(like_length(memory.texts, texts, torch.device("cpu")))
    assert sorted(number for numbers, _ in batches for number in numbers) == list(range(701))
    assert [len(numbers) for numbers, _ in batches] == [256, 256, 189] or len(batches[-1][0]) < 200
    assert batches[-1][1].ids_NL.shape[1] == memory.texts.longest
    assert list(like_length(memory.texts, [], torch.device("cpu"))) == []


def test_of_one_prompt_the_newest_edit_counts(memory):
    memory.add(EDITS)
    memory.decide(["Velmar is"])
    report = memory.add([Edit("later", " Velmar is ", "gone")])
    assert (report.written, report.replaced) == (1, 1)
    assert fired(memory, "Velmar is") == ["later"]
    assert len(memory) == len(memory.index) == 3
    assert memory.add([Edit("again", "Velmar is", "gone")]).known == 1
    assert memory.add([Edit("a", "A heron", "x"), Edit("b", "A heron", "y")]).stored[0].replaced_by == "b"
    assert fired(memory, "A heron") == ["b"]


def test_many_edits_are_written_in_batches_with_progress(memory):
    told = []
    edits = [Edit(str(n), f"heron {n}", "Velmar") for n in range(25)]
    assert memory.add(edits, "a test", told.append, batch=10).written == 25
    assert told == [10, 20, 25]
    assert {one.source for one in memory.repository.list()} == {"a test"}
    assert memory.add([]).stored == ()


def test_what_is_forgotten_no_longer_counts(memory):
    memory.add(EDITS)
    assert fired(memory, TOWN.prompt) == ["town"]
    assert [one.edit.target for one in memory.forget(["town"])] == [TOWN.target]
    assert fired(memory, TOWN.prompt, BRIDGE.prompt) == [None, "bridge"]
    with pytest.raises(DataError, match="'nobody' is not here"):
        memory.forget(["bridge", "nobody"])
    assert fired(memory, BRIDGE.prompt) == ["bridge"]
    memory.clear()
    memory.clear()
    assert fired(memory, BRIDGE.prompt) == [None]
    assert len(memory) == len(memory.index) == 0


def test_what_another_process_writes_counts_from_the_next_question_on(memory, tmp_path):
    memory.add([BRIDGE])
    with opened(tmp_path / "run", read_only=True) as reader:
        assert fired(reader, *(edit.prompt for edit in EDITS)) == ["bridge", None, None]
        memory.add([TOWN, PAINTER])
        memory.forget(["bridge"])
        assert fired(reader, *(edit.prompt for edit in EDITS)) == [None, "painter", "town"]
        memory.repository.roll_back(1)
        assert fired(reader, *(edit.prompt for edit in EDITS)) == ["bridge", None, None]
        with pytest.raises(DataError, match="was opened to read"):
            reader.add([TOWN])


def test_where_the_disk_is_full_it_is_told_what_was_stored(memory, monkeypatch):
    add = memory.repository.add

    def full(edits, *more):
        if len(memory) == 20:
            raise RepositoryError("no space")
        return add(edits, *more)

    monkeypatch.setattr(memory.repository, "add", full)
    edits = [Edit(str(n), f"heron {n}", "Velmar") for n in range(25)]
    with pytest.raises(RepositoryError, match="no space\nthe first 20 of 25 edits are stored"):
        memory.add(edits, batch=10)
    with pytest.raises(RepositoryError, match=r"^no space$"):
        memory.add([TOWN])
    monkeypatch.undo()
    report = memory.add(edits, batch=10)
    assert (report.written, report.known) == (5, 20)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Edit("x", "", "y", where="f:2"), "f:2"),
        (Edit("x", "Who", " ", where="f:2"), "f:2.*target"),
        (Edit("x", "Who\x07", "y", where="f:2"), "f:2.*prompt"),
        (Edit("x", "Who", "y\u202e", where="f:2"), "f:2.*target"),
        (Edit("x", "Who", "y" * 1_000_000, where="f:2"), "f:2.*target"),
        (Edit("bridge", "Who", "y", where="f:2"), "f:2.*'bridge' came before at edits.jsonl:1"),
        (Edit("x", "Who", "a harbour town " * 300, where="f:2"), "f:2.*tokens, and the language model reads 512"),
    ],
)
def test_a_bad_edit_is_named_and_nothing_is_stored(memory, bad, message):
    memory.add([PAINTER])
    with pytest.raises(DataError, match=message):
        memory.add([BRIDGE, bad])
    assert len(memory) == 1
    assert fired(memory, PAINTER.prompt, BRIDGE.prompt) == ["painter", None]


# margin ---------------------------------------------------------------------------------------------------------------


def test_the_margin_keeps_the_wanted_rate_over_what_is_stored(base, tmp_path):
    texts = [f"heron {number}" for number in range(20)] + OTHERS * 10
    make_run(tmp_path / "run", base, sentinel=-2.0, calibration=texts)
    with opened(tmp_path / "run", rate=0.1) as memory:
        margins = []
        for edits in ([TOWN], EDITS[:2], [Edit(str(n), f"heron {n}", "x") for n in range(5)]):
            memory.add(edits)
            decisions = memory.decide(texts)
            assert sum(one.fired for one in decisions) <= 5
            margins.append(decisions[0].margin)
        assert margins == sorted(margins)
        assert 0 < margins[0] < margins[-1]
        # with the keys gone that were near, the margin is what it was
        memory.forget([*map(str, range(5)), "bridge", "painter"])
        assert memory.decide(texts)[0].margin == pytest.approx(margins[0], abs=1e-6)
        memory.clear()
        assert memory.decide(texts)[0].margin == 0.0


def test_the_margin_is_that_of_the_keys_that_stand(base, tmp_path):
    texts = [f"heron {number}" for number in range(20)] + OTHERS * 10
    make_run(tmp_path / "run", base, sentinel=-2.0, calibration=texts)
    near = [Edit(str(n), f"heron {n}", "x") for n in range(5)]

    def margins():
        with opened(tmp_path / "run", rate=0.1, read_only=True) as fresh:
            return memory.decide(texts)[0].margin, pytest.approx(fresh.decide(texts)[0].margin, abs=1e-6)

    with opened(tmp_path / "run", rate=0.1) as memory:
        memory.add([*near, *(Edit(f"far{n}", f"{n} {n} Velmar", "x") for n in range(10))])
        largest, fresh = margins()
        assert largest == fresh
        memory.forget([str(n) for n in range(5)])  # less than half of all
        forgotten, fresh = margins()
        assert forgotten == fresh
        assert forgotten < largest
        memory.add([Edit("later", "0 0 Velmar", "y")])  # in the place of another
        replaced, fresh = margins()
        assert replaced == fresh
        memory.repository.roll_back(1)
        back, fresh = margins()
        assert back == fresh == pytest.approx(largest, abs=1e-6)


# prompt vectors -------------------------------------------------------------------------------------------------------


def test_prompt_vectors_are_those_of_the_text_of_what_fired(memory, base):
    from transformers import AutoModelForCausalLM

    model = FrozenModel(AutoModelForCausalLM.from_pretrained(base), memory.texts.model)
    memory.add(EDITS)
    decisions = memory.decide([TOWN.prompt, OTHERS[0], BRIDGE.prompt, TOWN.prompt])
    with pytest.raises(ValueError, match="give the memory its model"):
        memory.vectors(decisions)
    memory.model = model
    vectors = memory.vectors(decisions)
    assert [one is None for one in vectors] == [False, True, False, False]
    assert vectors[0] is vectors[3]
    for vector, edit in ((vectors[0], TOWN), (vectors[2], BRIDGE)):
        with torch.no_grad():
            alone = memory.networks.prompts(memory.texts.batch([edit.text], with_model=True), model.token_embeddings)
        assert vector.shape == (3, 32)
        assert torch.allclose(vector, alone[0], atol=1e-6)
    assert memory.vectors(memory.decide(OTHERS)) == [None, None, None]
