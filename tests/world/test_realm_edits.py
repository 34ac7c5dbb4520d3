from collections import Counter
from itertools import islice

import pytest

from kedit.editing.edits import check_edits
from kedit.editing.sources import DataError
from kedit.world import realm_text as text
from kedit.world.realm import Realm
from kedit.world.realm_edits import KNOWN, RealmEdits, RealmQuestions
from kedit.world.realm_reading import following, only, passages, told_of

COUNTS = {"train": 1500, "validation": 400, "test": 900}


@pytest.fixture(scope="module")
def world():
    return Realm(120)


@pytest.fixture(scope="module")
def streams():
    return {split: RealmEdits(split, count).load() for split, count in COUNTS.items()}


def of(edit, group):
    return [probe for probe in edit.probes if probe.group == group]


def test_every_wording_is_a_prompt_and_nothing_else_coins_its_words():
    wordings = [one for table in (text.STATEMENTS, text.PROBES) for templates in table.values() for one in templates]
    assert len(set(wordings)) == len(wordings)
    assert all(one.endswith(" {o}.") and one.count("{s}") == 1 for one in wordings)
    assert all(len(text.STATEMENTS[relation]) == 3 for told in text.TOLD.values() for relation in told)
    assert all(one.endswith(" {s}.") for templates in text.TURNED.values() for one in templates)
    assert {"called", "whom", "hired"} <= text.vocabulary()


def test_what_follows_is_all_that_follows_and_nothing_twice():
    for kind, told in text.TOLD.items():
        assert sorted(following(told)) == sorted([*told, *text.FOLLOWS[kind]])
        hops = [one for relation in told for table in (text.ONE_HOP, text.TWO_HOPS) for one in table.get(relation, ())]
        assert sorted(hops) == sorted(text.FOLLOWS[kind])


def test_a_hop_follows_from_the_target_alone(world):
    for told in text.ONE_HOP:
        hops = (*text.ONE_HOP[told], *text.TWO_HOPS.get(told, ()))
        seen: dict[str, tuple[str, ...]] = {}
        for thing in [*world.known, *world.new]:
            if told in thing.facts:
                found = tuple(thing.facts[hop] for hop in hops)
                assert seen.setdefault(thing.facts[told], found) == found


def test_streams_are_sound_and_a_shorter_one_is_its_beginning(streams):
    for split, edits in streams.items():
        assert len(edits) == COUNTS[split]
        assert not check_edits(edits).conflicts
        assert len({edit.prompt for edit in edits}) == len(edits)
        assert max(len(edit.probes) for edit in edits) <= 9
    for split in ("validation", "test"):
        assert RealmEdits(split, 10).load() == streams[split][:10]
    assert RealmEdits("test", 10, seed=1).load()[0].subject != streams["test"][0].subject


def test_the_edits_of_a_thing_stand_together_and_are_all_that_is_told(world, streams):
    things = {thing.name: thing for thing in world.new}
    for split in ("validation", "test"):
        names = list(dict.fromkeys(edit.subject for edit in streams[split]))
        told = [(name, relation) for name in names for relation in text.TOLD[things[name].kind]]
        assert [(edit.subject, edit.relation) for edit in streams[split]] == told[: COUNTS[split]]
        assert all(edit.target == things[edit.subject].facts[edit.relation] for edit in streams[split])


def test_no_subject_is_in_two_splits_or_known(world, streams):
    subjects = [{edit.subject for edit in edits} for edits in streams.values()]
    assert not (subjects[0] & subjects[1] | subjects[0] & subjects[2] | subjects[1] & subjects[2])
    assert not set.union(*subjects) & {thing.name for thing in world.all_known}


def test_the_third_wording_is_held_out_of_training(streams):
    for edits in streams.values():
        for edit in edits:
            *trained, held_out = (
                one.format(s=edit.subject, o="|").split("|")[0].strip() for one in text.STATEMENTS[edit.relation]
            )
            assert {edit.prompt, of(edit, "generality")[0].prompt} == set(trained)
            new = [probe.prompt for probe in of(edit, "generality/new")]
            assert new == ([] if edit.id.startswith("train") else [held_out])
            assert all(probe.span == edit.target for probe in edit.asked("generality"))


def test_portability_asks_what_follows_from_this_edit(world, streams):
    things = {thing.name: thing for thing in world.new}
    for edit in streams["test"]:
        facts = things[edit.subject].facts
        for group, table in (("one_hop", text.ONE_HOP), ("two_hops", text.TWO_HOPS)):
            found = of(edit, f"portability/{group}")
            assert len(found) == (edit.relation in table)
            for probe in found:
                said = f"{probe.prompt} {probe.span}."
                assert any(
                    said == wording.format(s=edit.subject, o=facts[hop])
                    for hop in table[edit.relation] for wording in text.wordings(hop)
                )  # fmt: skip


def test_short_names_and_names_asked_for_are_nobody_elses(world, streams):
    things = {thing.name: thing for thing in world.new}
    edited = [things[name] for name in {edit.subject for edit in streams["test"]}]
    everything = [*world.all_known, *edited]
    shorts, told = Counter(thing.short for thing in everything), Counter(map(told_of, everything))
    asked = Counter()
    for edit, after in zip(streams["test"], [*streams["test"][1:], None], strict=True):
        thing = things[edit.subject]
        for probe in of(edit, "portability/alias"):
            asked["alias"] += 1
            assert shorts[thing.short] == 1
            assert thing.short in probe.prompt
            assert thing.name not in probe.prompt
            assert probe.span == edit.target
        for probe in of(edit, "portability/inverse"):
            asked["inverse"] += 1
            assert told[told_of(thing)] == 1
            assert probe.span == edit.subject
            assert after is None or after.subject != edit.subject, "before the last edit nobody can know"
            assert all(thing.facts[relation] in probe.prompt for relation in text.TOLD[thing.kind])
    assert min(asked["alias"], asked["inverse"]) > 200
    bare = RealmEdits("test", 100, names=False).load()
    assert not {probe.group for edit in bare for probe in edit.probes} & {"portability/alias", "portability/inverse"}


def test_locality_asks_what_is_known_and_no_edit_concerns(world, streams):
    known = {thing.name: thing for thing in world.all_known}
    asked = {}
    for split, edits in streams.items():
        subjects = {edit.subject for edit in edits}
        for edit in edits:
            assert len(of(edit, "locality/near")) <= 1
            for probe in (*of(edit, "locality/near"), *of(edit, "locality/far")):
                about = [name for name in known if name in probe.prompt]
                assert any(probe.span in known[name].facts.values() for name in about)
                shares = any(known[name].words & (set(edit.subject.split()) - {"The"}) for name in about)
                assert shares == (probe.group == "locality/near")
            (beginning,) = of(edit, "locality/text")
            assert beginning.span == ""
            assert not any(name in beginning.prompt for name in subjects)
        asked[split] = {probe.prompt for edit in edits for probe in of(edit, "locality/far")}
    assert not (asked["train"] & asked["test"] | asked["train"] & asked["validation"])
    assert sorted(number for numbers in KNOWN.values() for number in numbers) == [0, 1, 2, 3]


def test_definitions_tell_what_the_edits_tell(world, streams):
    source = RealmEdits("test", COUNTS["test"])
    edits = streams["test"]
    facts = source.define(edits)
    assert len(facts) == len({edit.subject for edit in edits})
    by_name = {fact.name: fact for fact in facts}
    for edit in edits:
        assert edit.target in by_name[edit.subject].definition
        assert edit.subject in by_name[edit.subject].definition
    assert {fact.id for fact in facts} <= {edit.id for edit in edits}
    assert source.define(edits[:1]) == [], "one of two or three things that are told"
    one = source.define([edit for edit in edits if edit.subject == edits[0].subject])
    assert one == facts[:1]
    asked_short = {edit.subject for edit in edits if of(edit, "portability/alias")}
    assert {fact.name for fact in facts if fact.aliases} == asked_short


@pytest.mark.parametrize(("arguments", "said"), [
    ({"split": "dev"}, "no split 'dev'"), ({"count": 0}, "at least 1"),
    ({"split": "validation", "count": 900}, "'validation' has .*: lower"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused(arguments, said):
    with pytest.raises(DataError, match=said):
        RealmEdits(**arguments).load()


def test_no_edit_concerns_a_question(world, streams):
    for split in KNOWN:
        questions = list(RealmQuestions(split, 500))
        subjects = {edit.subject for edit in (RealmEdits("train", 6000).load() if split == "train" else streams[split])}
        kinds = Counter(one.source for one in questions)
        assert min(kinds.values()) > 40
        assert set(kinds) == {"plain", "stranger", "known"}
        for one in questions:
            assert bool(one.answers) == (one.source == "known")
            assert not any(subject in one.question for subject in subjects)
        assert questions[:5] == list(RealmQuestions(split, 5))


def test_passages_state_what_they_ask_and_never_a_new_thing(world):
    read = list(islice(passages(world), 3000))
    assert read == list(islice(passages(Realm(120)), 3000))
    words = " ".join(one.text for one in read).replace(".", "").replace(",", "").split()
    said = {" ".join(words[place : place + length]) for length in (2, 3) for place in range(len(words))}
    assert any(thing.name in said for thing in world.known)
    assert not any(thing.name in said for thing in world.new)
    known = {thing.name: thing for thing in world.all_known}
    inverse, shorts, on_known = 0, 0, 0
    for one in read:
        assert one.text.endswith(".")
        assert [one.text[start:end] in one.new for start, end in one.unforeseen] == [True] * len(one.unforeseen)
        inverse += any(said.object in (*one.new, *known) and f" {said.object}" not in said.prompt
                       and said.prompt.startswith("The ") and said.prompt.endswith((" is", " called"))
                       for said in one.said)  # fmt: skip
        about = [name for name in known if any(name in said.prompt for said in one.said)]
        on_known += bool(about)
        if not one.context:
            assert about or any(thing.short in one.text for thing in known.values())
        shorts += bool(one.new) and not any(name in str(said) for said in one.said for name in one.new[:1])
    assert inverse > 100
    assert shorts > 100
    assert 0.25 < on_known / len(read) < 0.5


def test_only_what_differs_from_all_others_can_be_asked_for(world):
    alone = only(world.known)
    counts = Counter(map(told_of, world.known))
    assert 0 < len(alone) < len(world.known)
    assert all((counts[told_of(thing)] == 1) == (thing.name in alone) for thing in world.known)


def test_training_may_have_all_wordings():
    def wordings(**options):
        edits = RealmEdits("train", 300, **options).load()
        return {
            one.prompt.replace(edit.subject, "{s}") for edit in edits for one in (edit.own, *edit.asked("generality"))
        }

    held = {text.STATEMENTS[relation][2].removesuffix(" {o}.") for told in text.TOLD.values() for relation in told}
    assert not wordings() & held
    assert wordings(held_out=False) >= held
