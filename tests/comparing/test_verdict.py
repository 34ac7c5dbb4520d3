from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_comparison import made_up

from kedit.comparing.results import BaseModel, Contestant, Costs, Figure, Kept
from kedit.comparing.standings import damage, kept_after, right, standings
from kedit.comparing.verdict import cautions, interval, verdict, verdicts

A_SECOND = Costs(0, 1.0)


def about(mean: float, half: float = 0.02) -> Figure:
    return Figure(mean, max(0.0, mean - half), min(1.0, mean + half))


def one(name="A", method="recipe", new=0.9, changed=0.01, half=0.02, curve=None, costs=A_SECOND, inferred=None, **more):
    """A contestant with the same share right of all that is asked about new facts, but for `inferred`."""
    inferred = new if inferred is None else inferred
    shares = {"reliability": new, "generality": new, "portability": inferred, "locality": 1 - changed}
    figures = {f"{aspect}/free": about(value, half) for aspect, value in shares.items()}
    points = tuple(Kept(facts, about(value)) for facts, value in (curve or {}).items())
    return Contestant(name, "m", method, figures=figures, retention=points, costs=costs, **more)


BASE = one("Model as it is", "base", 0.02, 0.0)


def without(contestant: Contestant, *names: str) -> Contestant:
    return replace(contestant, figures={name: f for name, f in contestant.figures.items() if name not in names})


def sentences(*contestants: Contestant, facts: int = 200) -> tuple[str, str, str]:
    return tuple(text.replace("\u00a0", " ") for text in verdict("m", contestants, facts).sentences)


def used(*contestants: Contestant, facts: int = 200) -> tuple[str, ...]:
    return verdict("m", contestants, facts).use


def test_right_is_the_mean_of_what_is_asked_and_damage_what_locality_leaves():
    a = one(new=0.9, inferred=0.6, changed=0.1)
    assert right(a, ("reliability", "generality", "portability")).mean == pytest.approx(0.8)
    assert right(a, ("portability",)) == about(0.6)
    assert right(without(a, "portability/free"), ("reliability", "portability")) is None
    assert right(a, ()) is None
    harm = damage(a)
    assert (harm.mean, harm.low, harm.high) == pytest.approx((0.1, 0.08, 0.12))
    assert damage(without(a, "locality/free")) is None
    seeds = {name: replace(figure, by_seed=(figure.mean, 0.5)) for name, figure in a.figures.items()}
    assert right(replace(a, figures=seeds), ("reliability", "generality", "portability")).by_seed == pytest.approx(
        (0.8, 0.5)
    )


def test_the_interval_of_a_mean_is_not_narrower_than_by_drawing():
    import numpy as np

    from kedit.editing.bootstrap import cluster_interval, estimate

    random = np.random.default_rng(0)
    shares = {"reliability": 0.9, "portability": 0.5}
    draws = {aspect: (random.random(200) < share).astype(float) for aspect, share in shares.items()}
    facts = list(range(200))
    figures = {
        f"{aspect}/free": Figure(estimate(hits, facts), *cluster_interval(hits, facts))
        for aspect, hits in draws.items()
    }
    ours = right(replace(one(), figures=figures), ("reliability", "portability"))
    both = np.mean(list(draws.values()), axis=0)
    low, high = cluster_interval(both, facts)
    assert ours.mean == pytest.approx(both.mean())
    assert ours.high - ours.low >= high - low


def test_who_answers_most_is_to_be_used():
    first, _, _ = sentences(BASE, one("A", new=0.9), one("B", new=0.7))
    assert first == (
        "Use A: taught 200 facts, it rightly answers 90 % [88–92] of what is asked about them, the most, and "
        "changes 1 % [0–3] of unrelated answers; it takes no training and 1 s a fact."
    )
    assert used(BASE, one("A", new=0.7), one("B", new=0.9)) == ("B",)


def test_one_that_changes_too_much_is_named_but_not_recommended():
    group = (BASE, one("A", new=0.8), one("B", "finetune", 0.97, 0.6))
    first = sentences(*group)[0]
    assert used(*group) == ("A",)
    assert "; B answers 97 %, but changes 60 %." in first
    assert "the most" not in first


def test_damage_is_too_much_only_where_its_interval_says_so():
    assert used(BASE, one("A", changed=0.115)) == ("A",)
    assert used(BASE, one("A", changed=0.125)) == ()
    bare = replace(one("A"), figures={**one("A").figures, "locality/free": Figure(0.89)})
    assert used(BASE, bare) == ()


def test_a_tie_is_decided_by_damage_and_then_by_time():
    slow, quick = Costs(0, 2.0), Costs(0, 0.5)
    level = one("A", new=0.91, changed=0.01, costs=slow), one("B", new=0.9, changed=0.01, costs=quick)
    assert used(BASE, *level) == ("B", "A")
    first = sentences(BASE, *level)[0]
    assert first.startswith("Use B: ")
    assert first.endswith("; A cannot be told from it and is taught no faster.")
    assert "the most" not in first
    harmful = one("A", new=0.91, changed=0.13, half=0.01), one("B", new=0.9, changed=0.09, half=0.05)
    assert used(BASE, *harmful) == ("B",)
    assert "the least" not in sentences(BASE, *harmful)[0]  # their damage overlaps
    harmless = used(BASE, one("A", new=0.91, changed=0.08), one("B", new=0.9, changed=0.01))
    assert harmless == ("B",)
    assert ", the least of those that answer so much;" in sentences(
        BASE, one("A", new=0.91, changed=0.08), one("B", new=0.9, changed=0.01)
    )[0]  # fmt: skip


def test_training_counts_by_the_number_of_facts():
    trained, taught = one("A", costs=Costs(100, 0.1)), one("B", costs=Costs(0, 1.0))
    assert used(BASE, trained, taught, facts=10) == ("B", "A")
    assert used(BASE, trained, taught, facts=1000) == ("A", "B")


def test_costs_that_were_not_measured_decide_nothing():
    first = sentences(BASE, one("A", costs=Costs()), one("B", costs=Costs()))[0]
    assert "what it costs was not measured" in first
    assert first.endswith("B cannot be told from it, nor by its costs, which were not measured.")
    assert used(BASE, one("A", costs=Costs()), one("B")) == ("B", "A")


def test_overlap_with_the_best_is_a_tie_and_no_overlap_is_none():
    assert len(used(BASE, one("A", new=0.90, half=0.02), one("B", new=0.865, half=0.02))) == 2
    assert len(used(BASE, one("A", new=0.90, half=0.02), one("B", new=0.855, half=0.02))) == 1


def test_without_intervals_nothing_is_told_apart():
    bare = [replace(each, figures={name: Figure(f.mean) for name, f in each.figures.items()}) for each in
            (one("A", new=0.9), one("B", new=0.5))]  # fmt: skip
    assert len(used(*bare)) == 2
    first = sentences(*bare)[0]
    assert "rightly answers 90 % of what" in first
    assert "B cannot be told from it" in first


def test_what_is_no_better_than_the_model_as_it_is_is_not_recommended():
    assert sentences(BASE, one("A", new=0.03)) [0] == (
        "None can be recommended: no contestant can be told from the model as it is by what it answers."
    )  # fmt: skip
    assert verdict("m", (BASE, one("A", new=0.03)), 9).headline == "None to recommend"
    worse = one("A", new=0.5), one("B", "base", 0.9, 0.0)
    assert used(*worse) == ()


def test_where_all_do_harm_the_least_is_named():
    first = sentences(BASE, one("A", "finetune", 0.9, 0.6), one("B", "lora", 0.7, 0.3))[0]
    assert first == (
        "None can be recommended: whoever answers more than the model as it is changes more than 10 % of unrelated "
        "answers, B (30 % [28–32], for 70 % right) the least."
    )
    tied = sentences(BASE, one("A", "finetune", 0.9, 0.31), one("B", "lora", 0.7, 0.3))[0]
    assert tied.endswith(", A (31 % [29–33], for 90 % right) and B (30 % [28–32], for 70 % right) the least.")
    only = sentences(BASE, one("A", "finetune", 0.9, 0.6))[0]
    assert only.endswith(" unrelated answers, as A (60 % [58–62], for 90 % right) does.")


def test_a_single_contestant_is_compared_with_no_one():
    said = sentences(one("A", curve={1: 1.0, 200: 0.9}))
    assert said[0].startswith(
        "Use A: taught 200 facts, it rightly answers 90 % [88–92] of what is asked about them, and changes"
    )
    assert said[1] == "After 200 facts A still says 90 % [88–92] of them; of no other was it measured."
    assert said[2] == (
        "Text in the prompt was not tried; distillation or KILM was not tried and fine-tuning was not tried."
    )
    alone = without(one("A", "lora"), "portability/free")
    assert sentences(alone)[2].endswith("was not tried and inferences of fine-tuning were not measured.")


def test_one_fact_is_one_fact():
    said = sentences(BASE, one("A", curve={1: 0.9}), facts=1)
    assert "taught 1 fact, it rightly answers" in said[0]
    assert said[1].startswith("After 1 fact A")


def test_each_fact_in_a_model_of_its_own_is_never_recommended():
    alone = one("A", "distill", 0.99, together=False, curve={1: 1.0})
    assert used(BASE, alone, one("B", new=0.6)) == ("B",)
    assert ", the most," not in sentences(BASE, alone, one("B", new=0.6))[1]
    assert sentences(BASE, alone)[0] == (
        "None can be recommended: of no contestant with all facts in one model was enough measured."
    )


def test_nobody_finished():
    failed = [
        Contestant("A", "m", "recipe", "failed", "no memory"),
        Contestant("B", "m", "kilm", "not applicable", "causal"),
    ]
    said = sentences(*failed)
    assert said[0] == "No contestant finished, so none can be recommended."
    assert sentences(BASE, *failed)[0] == said[0]
    assert said[1] == "How many facts are kept was not measured."
    assert used(*failed) == ()


def test_who_lacks_a_figure_is_not_ranked_and_named():
    lacking = without(one("B", new=0.99), "portability/free")
    assert used(BASE, one("A"), lacking) == ("A",)
    assert sentences(BASE, one("A"), lacking)[0].endswith("; not ranked, as figures are missing: B.")
    assert [each.name for each in standings([one("A"), lacking, without(one("C"), "locality/free")])] == ["A"]
    nothing = replace(one("B"), figures={})
    assert used(BASE, nothing) == ()
    few = [without(one(name), "portability/free", "generality/free") for name in "AB"]
    assert used(*few) == ("A", "B")  # of what none has, no one lacks


def test_who_keeps_the_most():
    group = (
        BASE,
        one("A", curve={1: 1, 100: 0.95}),
        one("B", "finetune", curve={1: 1, 100: 0.3}),
        one("C", "lora", curve={1: 1, 100: 0.1}),
    )
    assert sentences(*group)[1] == (
        "After 100 facts A still says 95 % [93–97] of all of them, the most; C says 10 %, the fewest."
    )
    assert sentences(*group[:3])[1].endswith("; B says 30 %.")
    level = one("D", "lora", curve={1: 1, 100: 0.12})
    assert sentences(*group, level)[1].endswith("; C says 10 %.")  # D says as many
    tied = (*group, one("D", "prompt", curve={1: 1, 100: 0.93}))
    assert sentences(*tied)[1] == (
        "After 100 facts A and D cannot be told apart by how many of them they still say, 95 % by the first; "
        "C says 10 %, the fewest."
    )


def test_curves_are_compared_where_at_least_two_were_asked():
    facts, kept = kept_after([one("A", curve={1: 1, 100: 0.9, 1000: 0.8}), one("B", curve={1: 1, 100: 0.95})])
    assert (facts, [each.name for each, _ in kept]) == (100, ["B", "A"])
    assert kept_after([one("A", curve={7: 1})])[0] == 7
    assert kept_after([BASE, Contestant("A", "m", "kilm", "failed", "x")]) == (0, [])


@pytest.mark.parametrize(
    ("prompt", "trained", "said"),
    [
        ((0.8, 0.02), (0.9, 0.02), "less than A (90 %), with a tie in damage (2 % against 2 %)"),
        ((0.95, 0.09), (0.8, 0.01), "more than A (80 %), at more damage (9 % against 1 %)"),
        ((0.9, 0.01), (0.9, 0.08), "level with A (90 %), at less damage (1 % against 8 %)"),
        ((0.9, 0.02), (0.91, 0.02), "a tie with A (91 % and 2 %)"),
    ],
)
def test_what_text_in_the_prompt_does(prompt, trained, said):
    third = sentences(BASE, one("P", "prompt", *prompt), one("A", "recipe", *trained))[2]
    assert third.startswith(
        f"P, with nothing trained, answers {100 * prompt[0]:.0f} % and changes {100 * prompt[1]:.0f} %"
    )
    assert said in third


def test_the_better_of_two_prompts_is_the_rival_and_may_win():
    group = (BASE, one("P", "prompt", 0.7), one("Q", "prompt", 0.95), one("A", new=0.8))
    assert used(*group) == ("Q",)
    assert sentences(*group)[2].startswith("Q, with nothing trained, answers 95 % and changes 1 %: more than A (80 %)")
    alone = sentences(BASE, one("P", "prompt"))[2]
    assert alone.startswith("P, with nothing trained, answers 90 % and changes 1 %; distillation or KILM was not")
    retriever = sentences(BASE, one("P", "prompt", costs=Costs(300, 0.1)))[2]
    assert retriever.startswith("P answers 90 % and changes 1 %; distillation or KILM was not")
    failed = Contestant("P", "m", "prompt", "failed", "no memory")
    assert sentences(BASE, one("A"), failed)[2].startswith("P failed; ")
    unfit = replace(failed, status="not applicable")
    assert sentences(BASE, one("A"), unfit)[2].startswith("P does not apply; ")
    blind = without(one("P", "prompt"), "locality/free")
    assert sentences(BASE, one("A"), blind)[2].startswith("P was not fully measured; ")


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((0.7, 0.02), (0.2, 0.5), "D beats F on inferences (70 % against 20 %), at less damage (2 % against 50 %)."),
        ((0.2, 0.02), (0.7, 0.5),
         "D is behind F on inferences (20 % against 70 %), at less damage (2 % against 50 %)."),
        ((0.7, 0.3), (0.2, 0.1), "D beats F on inferences (70 % against 20 %), at more damage (30 % against 10 %)."),
        ((0.5, 0.1), (0.51, 0.1),
         "D cannot be told from F on inferences (50 % against 51 %), with a tie in damage (10 % against 10 %)."),
    ],
)  # fmt: skip
def test_distillation_against_fine_tuning_on_inferences(ours, theirs, said):
    rivals = (
        one("D", "distill", 0.9, ours[1], inferred=ours[0]),
        one("F", "finetune", 0.9, theirs[1], inferred=theirs[0]),
    )
    assert sentences(BASE, *rivals)[2].endswith(f"; {said}")


def test_the_strongest_fine_tuning_and_the_distillation_of_all_facts_are_compared():
    group = (
        one("D alone", "distill", inferred=0.9, together=False),
        one("D", "distill", inferred=0.5),
        one("F", "finetune", inferred=0.1),
        one("L", "lora", inferred=0.3),
    )
    assert "; D beats L on inferences (50 % against 30 %)" in sentences(BASE, *group)[2]
    assert "; D alone beats L " in sentences(BASE, group[0], *group[2:])[2]
    assert (
        "; K is behind L on inferences (20 % against 30 %)" in sentences(one("K", "kilm", inferred=0.2), *group[2:])[2]
    )
    blind = without(group[1], "locality/free")
    assert sentences(BASE, blind, group[3])[2].endswith("; damage was not measured of both.")
    assert sentences(BASE, group[1])[2].endswith("; fine-tuning was not tried.")


def test_each_model_has_a_verdict_of_its_own():
    comparison = made_up()
    assert [(each.base, each.use) for each in verdicts(comparison)] == [
        ("realm-gpt2", ("RECIPE",)),
        ("realm-bart", ("KILM",)),
    ]
    only = tuple(each for each in comparison.contestants if each.base == "realm-gpt2")
    assert [each.base for each in verdicts(replace(comparison, contestants=only))] == ["realm-gpt2"]


def test_what_models_knew_and_who_failed_is_cautioned():
    comparison = made_up()
    assert cautions(comparison) == [*comparison.warnings, "Failed, and so not compared: LoRA, rank 64."]
    knowing = BaseModel("realm-gpt2", "causal", None, Figure(0.31), Figure(0.4))
    found = cautions(replace(comparison, bases=(knowing, comparison.bases[1]), warnings=()))
    assert [text.replace("\u00a0", " ") for text in found[:2]] == [
        "realm-gpt2 knows 31 % of the facts already: nothing to learn there.",
        "realm-gpt2 says only 40 % of the facts with their text before the question: as a teacher it has little to "
        "give, and text in the prompt little to work with.",
    ]


def test_an_interval_stands_behind_its_mean():
    assert interval(Figure(0.93, 0.91, 0.995)).replace("\u00a0", " ") == "93 % [91–99.5]"
    assert interval(Figure(0.93)).replace("\u00a0", " ") == "93 %"


shares = st.integers(0, 20).map(lambda number: number / 20)
contestants = st.builds(
    lambda number, method, new, inferred, changed, half, curve, costs, together, missing: without(
        one(f"C{number}", method, new, changed, half, curve, costs, inferred, together=together), *missing
    ),
    st.integers(0, 99),
    st.sampled_from(["base", "prompt", "finetune", "lora", "distill", "recipe", "kilm"]),
    shares,
    shares,
    shares,
    st.sampled_from([0.01, 0.05, 0.2]),
    st.dictionaries(st.sampled_from([1, 10, 100]), shares).map(lambda curve: dict(sorted(curve.items()))),
    st.sampled_from([Costs(), Costs(0, 1.0, 0.2, 1e6, 10, True), Costs(60, 0.1, -0.1, 1e6, 0, False)]),
    st.booleans(),
    st.sets(st.sampled_from(["portability/free", "locality/free"]), max_size=1),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(contestants, min_size=1, max_size=7, unique_by=lambda each: each.name), st.integers(1, 1000))
def test_whatever_came_out_three_sentences_are_made_that_the_numbers_bear(group, facts):
    found = verdict("m", group, facts)
    assert len(found.sentences) == 3
    for text in found.sentences:
        assert text[0].isupper()
        assert text.endswith(".")
        assert ". " not in text
        assert "nan" not in text
    standing = {each.name: each for each in standings(group)}
    ranked = [each for each in standing.values() if each.contestant.together and each.contestant.method != "base"]
    for name in found.use:
        chosen = standing[name]
        assert chosen in ranked
        assert chosen.tolerable
        for other in standing.values():
            certainly_more = other.right.low > chosen.right.high
            assert not (other.contestant.method == "base" and other.right.high >= chosen.right.low)
            assert not (other in ranked and other.tolerable and certainly_more and len(ranked) == 2)
    if ", the most, and" in found.sentences[0]:
        chosen = standing[found.use[0]]
        assert all(chosen.right.low > other.right.high for other in ranked if other is not chosen)
    if ", the least of those" in found.sentences[0]:
        chosen = standing[found.use[0]]
        level = [other for other in ranked if other is not chosen and other.right.ties(chosen.right)]
        assert all(chosen.damage.high < other.damage.low for other in level)
