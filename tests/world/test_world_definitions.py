import random
import re
from itertools import islice, pairwise

import pytest

from kedit.editing.probes import check_facts
from kedit.editing.sources import DataError
from kedit.world import realm_text
from kedit.world.definitions import NewEntities
from kedit.world.realm import NEW, Realm, definition, documents, relations, statement


@pytest.fixture(scope="module")
def realm():
    return Realm()


@pytest.fixture(scope="module")
def knowledge():
    return NewEntities().load()


def test_the_same_arguments_give_the_same_knowledge_and_another_seed_other_entities(knowledge):
    assert NewEntities().load() == knowledge
    other = NewEntities(seed=1).load()
    assert {fact.name for fact in other.facts} != {fact.name for fact in knowledge.facts}
    assert len(knowledge.facts) == 150
    assert len(knowledge.validation_facts) == 40


def test_facts_are_sound_and_probes_ask_about_them(knowledge):
    check_facts([*knowledge.facts, *knowledge.validation_facts])
    for facts, probes in (
        (knowledge.facts, knowledge.probes),
        (knowledge.validation_facts, knowledge.validation_probes),
    ):
        by_id = {fact.id: fact for fact in facts}
        assert {probe.fact for probe in probes} == set(by_id)
        assert all(fact.name in fact.definition for fact in facts)
        for probe in probes:
            assert by_id[probe.fact].name in probe.left, "the mention stands before the span"
    specific = [probe for probes in knowledge.specificity.values() for probe in probes]
    ids = [probe.id for probe in [*knowledge.probes, *knowledge.validation_probes, *specific]]
    assert len(set(ids)) == len(ids)


def test_answers_do_not_stand_in_the_definition_but_for_a_few_that_chance_puts_there(knowledge):
    definition_of = {fact.id: fact.definition for fact in knowledge.facts}
    copied = [probe for probe in knowledge.probes if probe.span in definition_of[probe.fact]]
    # somebody may work in the town of their birth, or an author's trade be the kind of a work
    assert len(copied) < 0.02 * len(knowledge.probes)


def test_what_follows_is_known_of_known_things(realm):
    known = {thing.name: thing for thing in realm.all_known}
    for thing in realm.new:
        facts = thing.facts
        if thing.kind == "person":
            assert facts["land"] == known[facts["birthplace"]].facts["land"]
            assert facts["money"] == known[facts["land"]].facts["money"]
            assert facts["office_town"] == known[facts["employer"]].facts["seat"]
        if thing.kind == "work":
            assert facts["author_job"] == known[facts["author"]].facts["profession"]
    assert {thing.kind for thing in realm.new} == set(realm_text.TOLD)


def test_wordings_of_probes_are_forbidden_and_other_wordings_are_not(realm, knowledge):
    patterns = [re.compile(pattern) for pattern in knowledge.forbidden]
    for thing in realm.new[:100]:
        for relation in relations(thing):
            for template in realm_text.PROBES.get(relation, ()):
                assert any(one.search(template.format(s=thing.name, o=thing.facts[relation])) for one in patterns)
            for template in realm_text.STATEMENTS.get(relation, ()):
                assert not any(one.search(template.format(s=thing.name, o=thing.facts[relation])) for one in patterns)
        assert not any(one.search(definition(thing, random.Random(0))) for one in patterns)
    for probe in knowledge.probes:
        assert any(one.search(probe.left + probe.span + probe.right) for one in patterns)


def test_untold_relations_have_no_wording_but_probes(knowledge):
    assert all(relation not in realm_text.STATEMENTS for relation in realm_text.UNTOLD)
    groups = {probe.group for probe in knowledge.probes}
    assert groups == {"told", "untold"}


def test_every_relation_has_wordings_and_every_wording_its_places():
    for kind, followed in realm_text.FOLLOWS.items():
        for relation in (*realm_text.TOLD.get(kind, ()), *followed):
            assert len(realm_text.wordings(relation)) >= 2
            assert all("{s}" in one and one.endswith("{o}.") for one in realm_text.wordings(relation))
    every = [one for table in (realm_text.STATEMENTS, realm_text.PROBES) for rows in table.values() for one in rows]
    assert len(set(every)) == len(every)


def test_unrelated_probes_share_no_word_with_a_new_name_and_neighbours_do(knowledge):
    words = {word for fact in knowledge.facts for word in fact.name.split()} - {"The"}
    unrelated, neighbours = knowledge.specificity["unrelated"], knowledge.specificity["neighbours"]
    assert len(unrelated) >= 500
    assert len(neighbours) >= 300
    for probe in unrelated:
        assert not words & set(probe.left.split())
    for probe in neighbours:
        assert words & set(probe.left.split())
    assert knowledge.known
    for name in knowledge.known:
        assert words & set(name.split())
        assert not any(name in probe.left for probe in unrelated + neighbours)


def test_probes_of_one_known_entity_are_one_cluster(knowledge):
    """An interval over probes as if each were of another entity would be far too narrow."""
    for probes in knowledge.specificity.values():
        clusters = {probe.cluster for probe in probes}
        assert len(clusters) < len(probes) / 4
        assert all(probe.entity in probe.left for probe in probes)
    assert {probe.cluster for probe in knowledge.probes} == {fact.id for fact in knowledge.facts}


@pytest.mark.parametrize("new", [1, 10, 500])
def test_any_number_of_entities_up_to_hundreds(new):
    knowledge = NewEntities(new=new).load()
    assert len(knowledge.facts) == new
    assert knowledge.validation_facts == NewEntities().load().validation_facts


def test_more_than_there_are_is_refused():
    with pytest.raises(DataError, match="lower `new` or `validation`"):
        NewEntities(new=NEW).load()
    with pytest.raises(DataError, match="at least 1"):
        NewEntities(new=0)
    with pytest.raises(DataError, match="raise `known`"):
        NewEntities(known=10).load()


def test_text_names_no_new_entity_and_uses_every_wording(realm):
    texts = list(islice(documents(realm, 0), 8000))
    assert texts[:50] == list(islice(documents(Realm(), 0), 50))
    whole = "\n".join(texts)
    words = re.findall(r"\w+", whole)
    together = set(pairwise(words))
    assert not together & {tuple(thing.name.split()[-2:]) for thing in realm.new}
    assert together & {tuple(thing.name.split()[-2:]) for thing in realm.known}
    for relation, rows in {**realm_text.STATEMENTS, **realm_text.PROBES}.items():
        for template in rows:
            before = max(template.removesuffix("{o}.").split("{s}"), key=len)
            assert before in whole, relation


def test_strangers_are_defined_before_they_are_spoken_of(realm):
    known = {thing.name for thing in realm.all_known}
    text = next(text for text in documents(realm, 0, read=1.0, strange=0.0) if " is a " in text.split(".")[0])
    name = text.split(" is a ")[0]
    assert name not in known
    assert text.count(name) >= 4


def test_a_statement_says_the_fact(realm):
    town = realm.towns[0]
    assert statement(town, "goods", random.Random(0)).endswith(f"{town.facts['goods']}.")
