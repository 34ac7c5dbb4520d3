import json
from collections import Counter

import pytest

from kedit.benchmarks import Ecbd, EntityInferences
from kedit.benchmarks.ecbd import sides, unmarked
from kedit.editing.sources import DataError


def ecbd_record(example="Blue_Moon Tour_123_2_0", name="Blue_Moon Tour", **more):
    return {
        "ex_id": example,
        "ent_str": name,
        "context": f"{name} is a tour.",
        "probe_sentences": {
            "template_0": {
                "probe_sentence": f"The {name} began in (<extra_id_0>), it is said.",
                "label": "<extra_id_0> early March <extra_id_1>",
            }
        },
        "augmented_probes": [f"{name} went on.", f"{name} sold out."],
        **more,
    }


def inference_record(name="Lake Fire (2020)", gold="brave", **more):
    labels = [f"<extra_id_0> {word} <extra_id_1>" for word in ("afraid", "brave", "very calm")]
    return {
        "ex_id": "fire_dev_0",
        "ent_str": name,
        "context": f"{name} burned.",
        "category": "disaster",
        "label": gold,
        "probe_sentences": {"template_0": {"probe_sentence": f"{name} made me <extra_id_0>.", "labels": labels}},
        "augmented_probes": [f"{name} spread."],
        **more,
    }


def written(folder, *records, name="records.json"):
    path = folder / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_record_becomes_a_fact_a_probe_and_continuations(tmp_path):
    knowledge = Ecbd(written(tmp_path, ecbd_record(), ecbd_record(), ecbd_record("X_9_0_1", "X Cup"))).load()
    fact, other = knowledge.facts
    assert (fact.id, fact.name, fact.definition) == (
        "Blue_Moon Tour_123",
        "Blue_Moon Tour",
        "Blue_Moon Tour is a tour.",
    )
    assert other.aliases == ("X",)
    probe = knowledge.probes[0]
    assert (probe.left, probe.span, probe.right) == ("The Blue_Moon Tour began in (", "early March", "), it is said.")
    assert [probe.id for probe in knowledge.probes] == [
        "Blue_Moon Tour_123_2_0",
        "Blue_Moon Tour_123_2_0#2",
        "X_9_0_1",
    ]
    assert [probe.fact for probe in knowledge.probes] == ["Blue_Moon Tour_123", "Blue_Moon Tour_123", "X_9"]
    assert [sentence.text for sentence in knowledge.continuations if sentence.fact == "X_9"] == [
        "X Cup went on.",
        "X Cup sold out.",
    ]
    assert len(knowledge.continuations) == 4
    assert knowledge.specificity == {}
    assert fact.where.endswith("records.json:1")


def test_popular_entities_are_a_set_of_their_own(tmp_path):
    file = written(tmp_path, ecbd_record())
    popular = written(tmp_path, ecbd_record("Clown_5_0_0", "Clown"), name="popular.json")
    (probe,) = Ecbd(file, popular).load().specificity["popular"]
    assert (probe.id, probe.fact, probe.group, probe.span) == ("popular/Clown_5_0_0", "", "popular", "early March")
    assert probe.cluster == "Clown"
    with pytest.raises(DataError, match=r"same\.json:1: 'Blue_Moon Tour' is also .* at .*records\.json:1"):
        Ecbd(file, written(tmp_path, ecbd_record(), name="same.json")).load()


def test_inferences_are_chosen_from_candidates(tmp_path):
    again = inference_record(augmented_probes=["Lake Fire (2020) spread.", "It ended."])
    file = written(tmp_path, inference_record(), again, inference_record("Dave", "very calm"))
    knowledge = EntityInferences(file).load()
    assert [fact.aliases for fact in knowledge.facts] == [("Lake Fire",), ()]
    assert [probe.span for probe in knowledge.probes] == ["brave", "brave", "very calm"]
    assert knowledge.probes[0].candidates == ("afraid", "brave", "very calm")
    assert knowledge.probes[0].group == "disaster"
    assert [text.text for text in knowledge.continuations] == ["Lake Fire (2020) spread.", "It ended.", "Dave spread."]
    assert knowledge.specificity["other_entities"] == knowledge.probes


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_entities_are_held_out_whatever_their_order(tmp_path, seed):
    records = [ecbd_record(f"E{n}_{n}_0_{k}", f"E{n}") for n in range(10) for k in range(2)]
    knowledge = Ecbd(written(tmp_path, *records), validation=0.3, seed=seed).load()
    turned = Ecbd(written(tmp_path, *records[::-1]), validation=0.3, seed=seed).load()
    held = {fact.id for fact in knowledge.validation_facts}
    assert len(held) == 3
    assert (
        held == {fact.id for fact in turned.validation_facts} == {probe.fact for probe in knowledge.validation_probes}
    )
    assert held.isdisjoint(fact.id for fact in knowledge.facts)
    assert held.isdisjoint(probe.fact for probe in knowledge.probes)
    assert (len(knowledge.probes), len(knowledge.validation_probes)) == (14, 6)
    assert held < {sentence.fact for sentence in knowledge.continuations}


def test_another_seed_holds_out_others(tmp_path):
    file = written(tmp_path, *(ecbd_record(f"E{n}_{n}_0_0", f"E{n}") for n in range(40)))
    held = [{fact.id for fact in Ecbd(file, validation=0.5, seed=seed).load().validation_facts} for seed in (0, 1)]
    assert held[0] != held[1]


@pytest.mark.parametrize(
    ("label", "span"),
    [
        ("<extra_id_0> a b <extra_id_1>", "a b"),
        ("<extra_id_0>x<extra_id_1>", "x"),
        ("<extra_id_0> \xa0a.m. <extra_id_1>", "\xa0a.m."),
    ],
)
def test_sentinels_are_taken_off(label, span):
    assert unmarked(label, "here") == span


@pytest.mark.parametrize(
    "label",
    ["early March", "<extra_id_0> <extra_id_1>", "<extra_id_0> x", "<extra_id_0> x <extra_id_2> y <extra_id_1>"],
)
def test_a_label_without_its_sentinels_is_refused(label):
    with pytest.raises(DataError, match=r"f:3: the label is .* wanted '<extra_id_0> SPAN <extra_id_1>'"):
        unmarked(label, "f:3")


@pytest.mark.parametrize("sentence", ["none", "<extra_id_0> and <extra_id_0>", "<extra_id_0> and <extra_id_1>"])
def test_a_sentence_wants_one_sentinel(sentence):
    with pytest.raises(DataError, match=r"f:3: the probe sentence is .* exactly one"):
        sides(sentence, "f:3")


@pytest.mark.parametrize(
    ("source", "records", "complaint"),
    [
        (Ecbd, [ecbd_record("no page")], r":1: 'ex_id' is 'no page', wanted TITLE_PAGEID"),
        (Ecbd, [ecbd_record("T_P_2_0")], r":1: 'ex_id' is"),
        (Ecbd, [ecbd_record(), ecbd_record(context="Else.")], r":2: .* another name or definition than at .*:1"),
        (Ecbd, [ecbd_record(context=" ")], r":1: the definition of .* is empty"),
        (Ecbd, [ecbd_record("A_1_0_0", "Same"), ecbd_record("B_2_0_0", "Same")], r":2: the name 'Same' came before"),
        (Ecbd, [{"ex_id": "A_1_0_0"}], r":1: no 'ent_str' here"),
        (Ecbd, [ecbd_record(probe_sentences={"template_1": {}})], r":1: no 'template_0' here"),
        (Ecbd, [ecbd_record(augmented_probes=[3])], r":1: 'augmented_probes' holds int"),
        (Ecbd, [], "no records"),
        (EntityInferences, [inference_record(gold="bold")], r":1: the label 'bold' is none of the candidates 'afraid'"),
        (EntityInferences, [ecbd_record()], r":1: no 'category' here"),
    ],
)
def test_bad_records_are_named(tmp_path, source, records, complaint):
    with pytest.raises(DataError, match=complaint):
        source(written(tmp_path, *records)).load()


def test_a_candidate_that_comes_twice_is_refused(tmp_path):
    record = inference_record()
    record["probe_sentences"]["template_0"]["labels"] *= 2
    with pytest.raises(DataError, match="a candidate comes twice"):
        EntityInferences(written(tmp_path, record)).load()


def test_options_are_checked(tmp_path):
    file = written(tmp_path, ecbd_record())
    with pytest.raises(DataError, match=r"no file .*nowhere"):
        Ecbd(tmp_path / "nowhere")
    with pytest.raises(DataError, match="validation is 1"):
        Ecbd(file, validation=1)
    with pytest.raises(DataError, match="leaves 0 of 1 entities"):
        Ecbd(file, validation=0.2).load()


def test_the_file_of_2023(real_data):
    folder = real_data / "ecbd"
    source = Ecbd(folder / "ecbd_2023_augmented.json", folder / "specificity_popular_20np_20random.json")
    knowledge = source.load()
    assert (len(knowledge.probes), len(knowledge.facts), len(knowledge.continuations)) == (393, 19, 285)
    assert len(knowledge.specificity["popular"]) == 40
    assert len({probe.id for probe in [*knowledge.probes, *knowledge.specificity["popular"]]}) == 433
    assert Counter(probe.fact for probe in knowledge.probes).most_common(1) == [("Qubo_5155377", 170)]
    assert len({(probe.left, probe.span, probe.right) for probe in knowledge.probes}) == 389
    assert sum("#" in probe.id for probe in knowledge.probes) == 122
    with (folder / "ecbd_2023_augmented.json").open(encoding="utf-8") as lines:
        filled = [json.loads(line)["pseudo"] for line in lines]
    assert [probe.left + probe.span + probe.right for probe in knowledge.probes] == filled
    assert source.load() == knowledge


def test_entity_inferences(real_data):
    source = EntityInferences(real_data / "ecbd" / "entity_inferences_augmented.json")
    knowledge = source.load()
    assert (len(knowledge.probes), len(knowledge.facts), len(knowledge.continuations)) == (170, 85, 849)
    assert set(Counter(probe.fact for probe in knowledge.probes).values()) == {2}
    assert Counter(probe.group for probe in knowledge.probes) == {"tv_show": 92, "disaster": 54, "fake_person": 24}
    assert sum(len(probe.candidates) for probe in knowledge.probes) == 1854
    definitions = {fact.id: fact.definition for fact in knowledge.facts}
    assert sum(probe.span in definitions[probe.fact] for probe in knowledge.probes) == 92
    names = {fact.id: fact.name for fact in knowledge.facts}
    assert sum(names[line.fact] in line.text for line in knowledge.continuations) == 386
    assert sum(bool(fact.aliases) for fact in knowledge.facts) == 6
