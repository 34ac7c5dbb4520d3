"""Figures of a test against hand computation; scores of the initial model are kept; a batch's size changes nothing."""

import json

import numpy as np
import pytest
import tiny_facts
import torch

from kedit.distill import figures, judging
from kedit.distill.judging import EditScores, Judge
from kedit.editing.bootstrap import cluster_interval
from kedit.editing.probes import Fact, Knowledge, Probe
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer

KNOWLEDGE = Knowledge(
    [Fact("a", "A", "of a"), Fact("b", "B", "of b")],
    [Probe("a1", "a", "", "x"), Probe("a2", "a", "", "x"), Probe("b1", "b", "", "x")],
    {"far": [Probe("s1", "", "", "x"), Probe("s2", "", "", "x")], "near": [Probe("n1", "a", "", "x")]},
)
BASE = EditScores(["a", "b"], {"a1": 4.0, "a2": 3.0, "b1": 5.0}, {"a1": (0.0, 1.0)},
                  {"far": {"s1": 1.0, "s2": 2.0}, "near": {"n1": 2.0}})  # fmt: skip
PREPEND = EditScores(["a", "b"], {"a1": 2.0, "a2": 2.0, "b1": 2.0}, {"a1": (1.0, 1.0)})
EDITED = EditScores(["a", "b"], {"a1": 3.0, "a2": 2.5, "b1": 3.5}, {"a1": (1.0, 0.0)},
                    {"far": {"s1": 1.1, "s2": 2.3}, "near": {"n1": 1.5}})  # fmt: skip
SCORES = {"base": BASE, "prepend": PREPEND, "edited": EDITED}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny_facts.base())


@pytest.fixture(scope="module")
def model(tokenizer):
    return load_causal(Backbone(tiny_facts.base()), tokenizer).eval()


@pytest.fixture(scope="module")
def knowledge():
    return tiny_facts.TinyFacts().load()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    return tmp_path


def test_results_are_what_a_hand_computes():
    found = judging.results(KNOWLEDGE, SCORES)
    wanted = {
        "test/target_nll/base": 4.0, "test/target_nll/prepend": 2.0, "test/target_nll/edited": 3.0,
        "test/target_nll_by_entity/base": (3.5 + 5) / 2, "test/target_nll_by_entity/edited": (2.75 + 3.5) / 2,
        "test/perplexity/base": np.exp(4.0), "test/gain_share": 1 / 2,
        "test/specificity_change": 0.2, "test/specificity_change/far": 0.2, "test/specificity_change/near": -0.5,
        "test/specificity_change_share/far": 0.1, "test/specificity_change_share/near": -0.25,
        "test/accuracy/base": 0.0, "test/accuracy/edited": 1.0, "test/accuracy_calibrated/edited": 0.0,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    gains = np.array([[1.0, 2.0], [0.5, 1.0], [1.5, 3.0]])
    low, high = cluster_interval(gains, ["a", "a", "b"], of=lambda means: means[..., 0] / means[..., 1])
    assert (found["test/gain_share_ci_low"], found["test/gain_share_ci_high"]) == (low, high)
    low, high = cluster_interval(np.array([0.1, 0.3]), ["s1", "s2"])  # without a fact each probe is its own cluster
    ends = [found["test/specificity_change_ci_low"], found["test/specificity_change_ci_high"]]
    assert ends == pytest.approx([low, high])
    assert np.isnan(found["test/specificity_change/near_ci_low"])  # one entity says nothing of others


def test_specificity_is_drawn_by_entity():
    """Probes of one entity that is no fact are no independent draws either."""
    probes = [Probe(f"s{k}", "", "", "x", entity=f"e{k // 2}") for k in range(6)]
    base, change = {probe.id: 1.0 for probe in probes}, [0.0, 0.0, 0.1, 0.1, 0.5, 0.5]
    edited = {probe.id: 1 + more for probe, more in zip(probes, change, strict=True)}
    knowledge = Knowledge(KNOWLEDGE.facts, [], {"none": [KNOWLEDGE.probes[0]], "far": probes})
    scores = {
        "base": EditScores([], specificity={"none": {"a1": 1.0}, "far": base}),
        "edited": EditScores([], specificity={"none": {}, "far": edited}),
    }
    found = judging.results(knowledge, scores)
    ends = found["test/specificity_change_ci_low"], found["test/specificity_change_ci_high"]
    assert ends == pytest.approx(cluster_interval(np.array(change), [0, 0, 1, 1, 2, 2]))
    # where all probes of the first set ask about what was edited, the next one speaks
    assert found["test/specificity_change"] == found["test/specificity_change/far"] == pytest.approx(0.2)


def test_some_facts_alone():
    part = BASE.of(["a"], KNOWLEDGE.probes)
    assert part == EditScores(["a"], {"a1": 4.0, "a2": 3.0}, {"a1": (0.0, 1.0)})
    assert BASE.of(["b"], KNOWLEDGE.probes) == EditScores(["b"], {"b1": 5.0})


def test_other_ways_have_names_of_their_own():
    found = judging.results(KNOWLEDGE, SCORES | {"finetune": EDITED})
    assert found["test/gain_share_finetune"] == found["test/gain_share"]
    assert found["test/specificity_change_finetune/far"] == found["test/specificity_change/far"]
    assert found["test/target_nll/finetune"] == 3.0


def test_a_fact_that_was_not_taught_has_the_answers_of_the_initial_model():
    fewer = EditScores(["a"], {"a1": 3.0, "a2": 2.5}, specificity=EDITED.specificity)
    found = judging.results(KNOWLEDGE, SCORES | {"edited": fewer})
    assert found["test/target_nll/base"] == 4.0
    assert found["test/target_nll/edited"] == pytest.approx((3.0 + 2.5 + 5.0) / 3)
    assert found["test/probes"] == 3
    prepended = np.mean([BASE.target[key] - PREPEND.target[key] for key in BASE.target])
    assert found["test/prepend_gain"] == pytest.approx(prepended)
    assert found["test/gain_share"] == pytest.approx(1.5 / 3 / prepended)


def test_there_is_no_share_of_no_gain():
    found = judging.results(KNOWLEDGE, SCORES | {"prepend": BASE})
    assert not [key for key in found if "share" in key]
    assert judging.prepend_gain(KNOWLEDGE.probes, {"base": PREPEND, "prepend": BASE}) == 0
    assert judging.results(KNOWLEDGE, {"base": BASE, "edited": EDITED})["test/target_nll/edited"] == 3.0


def test_independent_edits_are_merged():
    one = EditScores(["a"], {"a1": 1.0}, {"a1": (1.0, 0.0)}, {"far": {"s1": 1.0, "s2": 2.0}, "near": {}})
    two = EditScores(["b"], {"b1": 2.0}, {}, {"far": {"s1": 3.0, "s2": 2.0}, "near": {"n1": 7.0}})
    whole = judging.merged([one, two])
    assert whole.facts == ["a", "b"]
    assert whole.target == {"a1": 1.0, "b1": 2.0}
    assert whole.right == {"a1": (1.0, 0.0)}
    assert whole.specificity == {"far": {"s1": 2.0, "s2": 2.0}, "near": {"n1": 7.0}}
    state = json.loads(json.dumps(whole.to_state()))
    assert EditScores.from_state(state) == whole


def test_by_entity():
    rows = judging.by_entity(KNOWLEDGE, SCORES, [EDITED])
    change = (0.1 + 0.3 - 0.5) / 3
    assert [(row.name, row.gain, row.prepend_gain) for row in rows] == [("A", 0.75, 1.5), ("B", 1.5, 3.0)]
    assert [row.change for row in rows] == pytest.approx([change, change])
    alone = EditScores(["b"], {"b1": 4.0}, {}, {"far": {"s1": 2.0}})
    assert [(row.name, row.gain, row.change) for row in judging.by_entity(KNOWLEDGE, SCORES, [alone])] == [("B", 1, 1)]
    axes = figures.entities(rows).axes[0]
    assert "gain of the definition in context" in axes.get_xlabel()  # one change for all
    assert axes.collections[0].get_offsets().tolist() == [[1.5, 0.75], [3.0, 1.5]]
    apart = judging.by_entity(KNOWLEDGE, SCORES, [alone, EditScores(["a"], {"a1": 4.0, "a2": 1.0})])
    axes = figures.entities(apart).axes[0]
    assert "change elsewhere" in axes.get_xlabel()
    assert axes.collections[0].get_offsets().tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_retention_is_the_gain_that_is_left():
    judged = {
        0: [EditScores(["a"], {"a1": 3.0, "a2": 1.0})],
        1: [EditScores(["a", "b"], {"a1": 3.5, "a2": 2.0, "b1": 4.0})],
    }
    found = judging.retention(KNOWLEDGE, BASE, judged)
    assert found["test/retention"] == pytest.approx((0.5 + 1 + 1) / (1 + 2 + 1))
    assert found["test/target_nll/when_learned"] == pytest.approx(8 / 3)
    assert {"test/retention_ci_low", "test/retention_ci_high"} <= set(found)
    curve = judging.retention_curve(judged)
    assert curve == [(1, 2.0), (2, pytest.approx(9.5 / 3))]
    assert figures.retention(curve).axes[0].lines[0].get_xdata().tolist() == [1, 2]


def test_scores_are_likelihoods_of_spans(model, tokenizer, knowledge):
    judge = Judge(tokenizer, knowledge)
    found = judge.target(model, definitions=judge.definitions())
    fact, probe = knowledge.facts[1], knowledge.probes[2]
    text, start = f"{fact.definition} {probe.left}{probe.span}{probe.right}", len(f"{fact.definition} {probe.left}")
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([[tokenizer.bos_token_id, *read.input_ids]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    inside = [
        at for at, (first, end) in enumerate(read.offset_mapping) if end > start and first < start + len(probe.span)
    ]
    nll = [-log_probs[at, ids[0, at + 1]].item() for at in inside]
    assert found.target[probe.id] == pytest.approx(np.mean(nll), rel=1e-4)
    assert found.facts == [fact.id for fact in knowledge.facts]
    assert set(found.right) == {probe.id for probe in knowledge.probes if probe.candidates}


def test_a_random_definition_is_that_of_another_fact(tokenizer, knowledge):
    judge = Judge(tokenizer, knowledge)
    own, other = judge.definitions(), judge.definitions(shift=1)
    assert own.keys() == other.keys()
    assert all(own[id] != other[id] for id in own)
    assert sorted(own.values()) == sorted(other.values())


def test_a_batch_of_any_size_says_the_same(model, tokenizer, knowledge):
    small, large = (Judge(tokenizer, knowledge, batch_tokens=size) for size in (30, 4000))
    one, two = (judge.target(model, definitions=judge.definitions()) for judge in (small, large))
    assert one.target == pytest.approx(two.target, abs=1e-5)
    assert one.right == two.right
    far, near = (judge.specificity(model) for judge in (small, large))
    assert {key: pytest.approx(value, abs=1e-5) for key, value in far.items()} == near


def test_specificity_leaves_out_what_was_edited(model, tokenizer, knowledge):
    judge = Judge(tokenizer, knowledge)
    found = judge.specificity(model, ["maro", "orin"])
    assert "near-maro" not in found["neighbours"]
    assert len(found["neighbours"]) == 4
    assert len(found["unrelated"]) == 5
    assert judge.specificity(model, sets={"some": knowledge.specificity["unrelated"][:2]}).keys() == {"some"}


def test_the_initial_scores_are_kept_and_equal(model, tokenizer, knowledge, cache, monkeypatch, capsys):
    judge = Judge(tokenizer, knowledge)
    fresh = judge.initial(model)
    (file,) = (cache / "scores").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(judging, "probe_nll", None)  # is not asked again
        assert Judge(tokenizer, knowledge, batch_tokens=10).initial(model) == fresh
    assert fresh == judge.initial(model)
    asked = judge.target(model)
    asked.specificity = judge.specificity(model)
    assert fresh == asked
    # what they hang on
    judge.initial(model, ["maro"])
    fewer = Knowledge(knowledge.facts, knowledge.probes[1:], knowledge.specificity)
    Judge(tokenizer, fewer).initial(model)
    moved = {"unrelated": knowledge.specificity["unrelated"][:-1],
             "neighbours": [knowledge.specificity["unrelated"][-1], *knowledge.specificity["neighbours"]]}  # fmt: skip
    found = Judge(tokenizer, Knowledge(knowledge.facts, knowledge.probes, moved)).initial(model)
    assert len(found.specificity["neighbours"]) == 7
    with torch.autocast("cpu", torch.bfloat16):
        assert judge.initial(model).target != fresh.target
    assert len(list((cache / "scores").iterdir())) == 5
    file.write_text("{")
    assert judge.initial(model) == fresh
    assert json.loads(file.read_text())["facts"] == fresh.facts
