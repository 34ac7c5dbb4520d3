"""The made-up world is consistent, its entities can be told apart, and it is the same in every process."""

import random
from collections import Counter

import pytest

from kedit.editing.sources import DataError
from kedit.world import World, kinds, text
from kedit.world.names import Names

SIZES = [(200, 0), (200, 7), (320, 1), (2000, 0)]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}-seed{size[1]}")
def world(request):
    return World(*request.param)


def test_as_many_entities_as_asked_for(world):
    assert len(world.entities) in {size for size, _ in SIZES}
    assert [entity.id for entity in world.entities] == list(range(len(world.entities)))
    assert {entity.kind for entity in world.entities} == set(kinds.KINDS)


def test_too_small_a_world_is_refused_naming_the_option():
    with pytest.raises(DataError, match=r"150 entities.*`entities`"):
        World(entities=150)


def test_titles_and_aliases_are_unique_and_descriptions_nearly_so(world):
    titles = [title for entity in world.entities for title in (entity.title, *entity.aliases)]
    assert len(set(titles)) == len(titles)
    descriptions = {entity.description for entity in world.entities}
    assert len(descriptions) >= 0.99 * len(world.entities)
    for entity in world.entities:
        assert entity.title in (entity.name, f"{entity.name} ({entity.category})")
        assert entity.description
        assert "{" not in entity.description
        assert world.entities[world.by_title[entity.title]] is entity


def test_three_quarters_share_a_name_with_one_to_four_others(world):
    sizes = [len(world.namesakes(entity.id)) for entity in world.entities]
    assert 0.70 <= sum(size > 0 for size in sizes) / len(sizes) <= 0.80
    assert set(sizes) == {0, 1, 2, 3, 4}
    groups = [[world.entities[id].kind for id in ids] for ids in world.by_name.values() if len(ids) > 1]
    one_kind = sum(len(set(group)) == 1 for group in groups)
    assert 0.2 * len(groups) < one_kind < 0.8 * len(groups)


def test_namesakes_differ_in_category_and_description(world):
    for ids in world.by_name.values():
        assert len({world.entities[id].category for id in ids}) == len(ids)
        assert len({world.entities[id].description for id in ids}) == len(ids)


def test_every_entity_has_clues_that_hold_for_no_namesake(world):
    for entity in world.entities:
        clues = {fact.value for fact in world.clues(entity.id)}
        assert len(clues) >= 4
        assert entity.category in clues
        for other in world.namesakes(entity.id):
            assert not clues & {fact.value for fact in world.facts_of(other)}


def test_objects_are_of_the_right_kind_and_named_as_they_are(world):
    shape_of = {
        "birthplace": "town",
        "residence": "town",
        "spouse": "person",
        "employer": "organisation",
        "mentor": "person",
        "notable_work": "work",
        "capital": "town",
        "located_in": "country",
        "near": "town",
        "author": "person",
        "publisher": "organisation",
        "habitat": "place",
        "enemy": "species",
        "founded_by": "person",
        "twin_town": "town",
        "rival": "organisation",
    }
    seen = Counter(fact.relation for fact in world.facts)
    assert set(shape_of) <= set(seen)
    assert set(seen) == set(text.STATEMENTS)
    for fact in world.facts:
        if fact.object is not None:
            object = world.entities[fact.object]
            assert object.name == fact.value
            assert object.name != world.entities[fact.subject].name
            assert object.shape == shape_of.get(fact.relation, object.shape)


def test_relations_are_functional_symmetric_and_inverse_where_they_should_be(world):
    for entity in world.entities:
        counts = Counter(fact.relation for fact in world.facts_of(entity.id))
        assert all(count == 1 for relation, count in counts.items() if relation != "notable_work")
    for fact in world.facts:
        if fact.relation in ("spouse", "twin_town", "rival"):
            back = world.fact(fact.object, fact.relation)
            assert back is not None
            assert back.object == fact.subject
        if fact.relation == "author":
            works = {one.object for one in world.facts_of(fact.object) if one.relation == "notable_work"}
            assert fact.subject in works
            assert world.entities[fact.object].category in kinds.MAKERS[world.entities[fact.subject].category]


def test_countries_agree_along_the_chains(world):
    for fact in world.facts:
        if fact.relation == "capital":
            assert world.fact(fact.object, "located_in").object == fact.subject
        if fact.relation == "near":
            assert world.value(fact.object, "located_in") == world.value(fact.subject, "located_in")
        if fact.relation == "habitat":
            assert world.value(fact.object, "located_in") == world.value(fact.subject, "native_to")


def test_dates_agree(world):
    def year(entity, relation):
        return int(world.value(entity, relation))

    for entity in world.entities:
        if entity.kind == "person":
            assert 45 <= year(entity.id, "death_year") - year(entity.id, "birth_year") <= 85
    for fact in world.facts:
        match fact.relation:
            case "spouse":
                assert abs(year(fact.subject, "birth_year") - year(fact.object, "birth_year")) <= 12
            case "mentor":
                assert year(fact.object, "birth_year") + 15 <= year(fact.subject, "birth_year")
                assert year(fact.subject, "birth_year") + 15 < year(fact.object, "death_year")
            case "founded_by":
                founded = year(fact.subject, "founding_year")
                assert year(fact.object, "birth_year") + 22 <= founded < year(fact.object, "death_year")
            case "leader":
                assert year(fact.subject, "founding_year") < year(fact.object, "death_year")
            case "employer":
                assert year(fact.object, "founding_year") < year(fact.subject, "death_year")
            case "author":
                published = year(fact.subject, "publication_year")
                assert year(fact.object, "birth_year") + 20 <= published < year(fact.object, "death_year")
            case "publisher":
                assert year(fact.object, "founding_year") <= year(fact.subject, "publication_year")


def test_definitions_say_what_the_entity_is(world):
    for entity in world.entities:
        definition = world.definition(entity.id)
        assert definition.startswith(entity.name)
        assert entity.category in definition
        assert definition.count(". ") <= 1
        assert "{" not in definition


def test_inferences_take_one_fact_of_the_definition_and_one_more(world):
    found = 0
    for entity in world.entities:
        for inference in world.inferences(entity.id):
            found += 1
            first, second = inference.support
            assert (first.subject, second.subject) == (entity.id, first.object)
            assert inference.answer == second.value
            assert first.value in world.definition(entity.id)
            assert entity.name in inference.prompt
            assert inference.answer not in world.entities[entity.id].name
    assert found >= len(world.entities)


def test_another_seed_is_another_world_and_the_same_seed_the_same():
    def told(world):
        return [(entity.title, entity.description, *world.facts_of(entity.id)) for entity in world.entities]

    assert told(World(200, 3)) == told(World(200, 3))
    assert told(World(200, 3)) != told(World(200, 4))


def test_names_are_new_each_time_and_no_words_of_the_wording():
    avoided = {"baba", "bebe"}
    names = Names(random.Random(0), avoided)
    coined = [names.word().lower() for _ in range(3000)]
    assert len(set(coined)) == len(coined)
    assert not avoided & set(coined)


def test_names_that_run_out_say_so():
    class Everything:
        def __contains__(self, word):
            return True

    with pytest.raises(ValueError, match="entities"):
        Names(random.Random(0), Everything()).word()
