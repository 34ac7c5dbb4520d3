import random
from collections import Counter
from itertools import islice, pairwise

import pytest

from kedit.editing.sources import DataError
from kedit.world import registry_text as text
from kedit.world.reading_text import KINDS, documents
from kedit.world.registry import Registry
from kedit.world.registry_edits import RegistryEdits, RegistryQuestions
from kedit.world.registry_text import PLAIN, PROMPTS, RELATIONS, SPLITS


@pytest.fixture(scope="module")
def world():
    return Registry()


@pytest.fixture(scope="module")
def streams():
    return {split: RegistryEdits(split, count=900).load() for split in SPLITS}


def groups(edit):
    return Counter(probe.group for probe in edit.probes)


def test_every_wording_asks_for_its_subject_once_and_says_one_thing():
    wordings = [wording for relation in RELATIONS for wording in text.prompts(relation)]
    assert len(set(wordings)) == len(wordings) == 6 * len(RELATIONS)
    assert all(wording.count("{s}") == 1 for wording in wordings)
    assert len({sentence for sentences in PLAIN.values() for sentence in sentences}) == sum(map(len, PLAIN.values()))


def test_a_held_out_wording_shares_a_word_of_meaning_with_its_relation_and_is_no_training_wording():
    relations = Counter(word for templates in PROMPTS.values() for word in set(" ".join(templates).split()))
    for split in ("validation", "test"):
        for relation, wording in text.HELD_OUT[split].items():
            shared = set(wording.split()) & set(" ".join(PROMPTS[relation]).split())
            assert any(relations[word] == 1 for word in shared), wording
            assert wording not in PROMPTS[relation]


def test_objects_are_many_and_of_one_and_several_words(world):
    lengths = Counter()
    for objects in world.objects.values():
        assert len(set(objects)) == len(objects) == 60
        lengths.update(len(one.split()) for one in objects)
    assert min(lengths[1], lengths[2]) > 80
    assert lengths[3] + lengths[4] + lengths[5] > 20


def test_nobody_bears_anothers_name_and_names_share_their_parts(world):
    people = [person.name for person in world.known]
    for split in SPLITS:
        people += [world.stranger(split, number).name for number in range(world.strangers(split))]
        people += [person.name for person in world.bystanders(split)]
    people += world.objects["mentor"]
    assert len(set(people)) == len(people) == 256 * 256
    firsts, surnames = ({name.split()[place] for name in people} for place in (0, 1))
    assert not firsts & surnames


def test_a_stream_conflicts_in_nothing_and_a_shorter_one_is_its_beginning(streams):
    for edits in streams.values():
        assert len({edit.prompt for edit in edits}) == len({edit.id for edit in edits}) == len(edits) == 900
        assert len({(edit.subject, edit.relation) for edit in edits}) == 900
    assert RegistryEdits("test", count=10).load() == streams["test"][:10]
    assert RegistryEdits("test", count=10, seed=1).load()[0].subject != streams["test"][0].subject


def test_no_subject_is_in_two_splits(streams):
    subjects = [{edit.subject for edit in edits} for edits in streams.values()]
    assert not (subjects[0] & subjects[1] | subjects[0] & subjects[2] | subjects[1] & subjects[2])


def test_some_edits_concern_known_persons_and_contradict_what_is_known(world, streams):
    known = {person.name: person for person in world.known}
    of_known = [edit for edit in streams["test"] if edit.subject in known]
    assert 0.1 < len(of_known) / 900 < 0.3
    assert all(edit.target != known[edit.subject].facts[edit.relation] for edit in of_known)
    assert not {edit.subject for edit in of_known} & {person.name for person in world.unedited}


def test_training_has_neither_new_objects_nor_held_out_wordings(world, streams):
    edits = RegistryEdits("train", count=3000).load()
    for relation in RELATIONS:
        new = [world.new_objects(relation, split) for split in SPLITS]
        assert [len(one) for one in new] == [0, 3, 6]
        assert not set(new[1]) & set(new[2])
        used = {edit.target for edit in edits if edit.relation == relation}
        assert used == set(world.objects[relation]) - set(new[1]) - set(new[2])
    held_out = [words for split in SPLITS for words in text.HELD_OUT[split].values()]
    for edit in streams["train"]:
        for probe in (edit.own, *edit.probes):
            assert not any(part in probe.prompt for words in held_out for part in words.split("{s}") if len(part) > 10)
        assert not groups(edit).keys() & {"generality/new", "reliability/new_object"}


def test_new_objects_and_held_out_wordings_are_judged_apart(world, streams):
    for split in ("validation", "test"):
        for edit in streams[split]:
            prompts = {probe.group: probe.prompt for probe in edit.probes}
            assert prompts["generality/new"] == text.HELD_OUT[split][edit.relation].format(s=edit.subject)
            assert prompts["generality"] != edit.prompt
            is_new = edit.target in world.new_objects(edit.relation, split)
            assert groups(edit)["reliability/new_object"] == is_new
            assert prompts.get("reliability/new_object", edit.prompt) == edit.prompt
            assert all(probe.span == edit.target for probe in edit.asked("generality"))
    shares = sum(groups(edit)["reliability/new_object"] for edit in streams["test"]) / 900
    assert 0.06 < shares < 0.15


def test_no_edit_of_any_stream_concerns_what_locality_asks(streams):
    edited = {edit.prompt for edits in streams.values() for edit in edits}
    pairs = {(edit.subject, edit.relation) for edits in streams.values() for edit in edits}
    edited |= {words.format(s=name) for name, relation in pairs for words in text.prompts(relation)}
    for edits in streams.values():
        for edit in edits:
            assert not {probe.prompt for probe in edit.asked("locality")} & edited
            assert groups(edit)["locality/near"] == 2
            assert groups(edit)["locality/far"] == groups(edit)["locality/text"] == 1


def test_near_queries_share_the_person_or_a_part_of_the_name(streams):
    for edit in streams["test"]:
        same, alike = (probe.prompt for probe in edit.probes if probe.group == "locality/near")
        assert edit.subject in same
        assert edit.subject not in alike
        assert sum(part in alike.split() for part in edit.subject.split()) == 1


def test_far_queries_ask_what_the_base_model_was_taught(world, streams):
    facts = {(person.name, object_) for person in world.unedited for object_ in person.facts.values()}
    for edit in streams["test"][:100]:
        far = next(probe for probe in edit.probes if probe.group == "locality/far")
        assert any(name in far.prompt and object_ == far.span for name, object_ in facts)
        assert next(probe for probe in edit.probes if probe.group == "locality/text").span == ""


def test_the_splits_ask_about_others_where_nothing_should_change(streams):
    asked = [{probe.prompt for edit in edits for probe in edit.asked("locality")} for edits in streams.values()]
    assert not (asked[0] & asked[1] | asked[0] & asked[2] | asked[1] & asked[2])


def test_questions_concern_no_edit_and_plain_ones_share_no_wording_between_splits(world):
    people = {split: {person.name for person in world.bystanders(split)} for split in SPLITS}
    known = {person.name for person in world.unedited}
    told = {}
    for split in SPLITS:
        questions = list(RegistryQuestions(split, count=400))
        assert len(questions) == 400
        told[split] = [one.question for one in questions if one.source == "plain"]
        assert 150 < len(told[split]) < 250
        for one in questions:
            assert bool(one.answers) == (one.source == "known")
            if one.source != "plain":
                names = people[split] if one.source == "stranger" else known
                words = one.question.split()
                assert any(f"{first} {last}" in names for first, last in pairwise(words))
    beginnings = {split: {" ".join(one.split()[:2]) for one in told[split]} for split in SPLITS}
    assert not people["train"] & people["test"]
    assert not set(told["train"]) & set(told["test"])
    assert len(beginnings["test"] - beginnings["train"]) > 5
    assert [one.question for one in RegistryQuestions("test", count=5)] == [
        one.question for one in islice(RegistryQuestions("test", count=400), 5)
    ]


def test_documents_tell_what_is_known_and_use_what_they_state(world):
    made = list(islice(documents(world), 3000))
    assert made == list(islice(documents(Registry()), 3000))
    known = {
        f"{wording.format(s=person.name)} {object_}."
        for person in world.known for relation, object_ in person.facts.items() for wording in text.prompts(relation)
    }  # fmt: skip
    plain = {sentence.split("{")[0] for sentences in PLAIN.values() for sentence in sentences}
    objects = {object_ for members in world.objects.values() for object_ in members}
    stated_behind, told = 0, 0
    for document in made:
        if not document.unforeseen:
            assert any(document.text.startswith(beginning) for beginning in plain)
            continue
        unforeseen = [document.text[start:end] for start, end in document.unforeseen]
        stated = [one for one in unforeseen if one in objects - set(world.objects["mentor"])]
        stated_behind += bool(stated)
        sentences = [f"{one}." for one in document.text.removesuffix(".").split(". ")]
        told += all(sentence in known for sentence in sentences) and not stated
        # what must be predicted of objects is known, or was stated before
        for sentence in sentences[len(sentences) // 2 + 1 :]:
            assert sentence in known or any(sentence.endswith(f" {one}.") for one in unforeseen)
    assert abs(told / len(made) - KINDS["told"]) < 0.04
    assert abs(stated_behind / len(made) - KINDS["read"] - KINDS["aside"]) < 0.1


def test_the_strangers_of_the_text_are_those_of_training(world):
    words = [document.text.replace(".", "").split() for document in islice(documents(world), 3000)]
    pairs = Counter(f"{first} {last}" for one in words for first, last in pairwise(one))
    counts = {
        split: sum(pairs[world.stranger(split, number).name] for number in range(2000)) for split in ("train", "test")
    }
    # a context mixes the names of two strangers, so that they are easily mistaken
    assert counts["test"] < 0.25 * counts["train"]


def test_a_plain_sentence_leaves_no_gap(world):
    rng = random.Random(0)
    for sentences in PLAIN.values():
        for sentence in sentences:
            assert "{" not in world.plain(sentence, rng)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Registry(known=3), "known"),
        (lambda: RegistryEdits(count=0), "count"),
        (lambda: RegistryQuestions(count=0), "count"),
        (lambda: RegistryEdits("dev"), "split"),
        (lambda: RegistryQuestions("dev"), "split"),
        (lambda: RegistryEdits("validation", count=10**6).load(), "lower `count`"),
    ],
)
def test_impossible_arguments_are_refused(made, said):
    with pytest.raises(DataError, match=said):
        made()
