import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kedit.editing.bootstrap import cluster_interval
from kedit.editing.editor import Editor
from kedit.editing.edits import Edit, probe
from kedit.editing.figures import lifelong
from kedit.editing.general_ability import TextPerplexity
from kedit.editing.judging import Forced, Judge, Judged, answers, cut_text, joined
from kedit.editing.sources import DataError
from kedit.editing.stream import EditedModel, Stream, run, seconds
from kedit.editing.stream_report import MEANINGS

IDS: dict[str, int] = {}  # one vocabulary for all models


class Words:
    """A "model" that knows answers by heart, a word a token; what it does not know it calls "nothing known"."""

    def __init__(self, known=None, capacity=None):
        self.known, self.taught, self.capacity = known or {}, {}, capacity
        self.edited, self.asked = [], []

    def said(self, prompt):
        return self.taught.get(prompt) or self.known.get(prompt, "nothing known")

    def generate(self, prompts, max_new_tokens=32):
        self.asked += prompts
        return [" ".join(self.said(prompt).split(" ")[:max_new_tokens]) for prompt in prompts]

    def greedy_tokens(self, prompts, targets):
        found = []
        for prompt, target in zip(prompts, targets, strict=True):
            words = target.split()
            said = [*self.said(prompt).split(), *[""] * len(words)][: len(words)]
            found.append(Forced(*(np.array([self._id(word) for word in part]) for part in (said, words))))
        return found

    def score(self, prompts, targets):
        return [np.full(len(target.split()), math.log(2 + len(self.taught)), np.float32) for target in targets]

    def edit(self, edits):
        self.edited.append(len(edits))
        for one in edits:
            self.taught.pop(one.prompt, None)
            self.taught[one.prompt] = one.target
        while self.capacity and len(self.taught) > self.capacity:
            self.taught.pop(next(iter(self.taught)))

    def forget(self, ids):
        raise NotImplementedError

    def reset(self):
        self.taught.clear()

    def _id(self, word):
        return IDS.setdefault(word.strip(".").casefold(), len(IDS))


def stream_of(count):
    return [
        Edit(
            f"e{n}", f"capital of {n}", f"New Town{n}",
            probes=(
                probe(f"e{n}", "generality", f"{n} has the capital", f"New Town{n}"),
                probe(f"e{n}", "locality/near", f"river of {n}", f"Old River{n}"),
                probe(f"e{n}", "locality/far", f"sum of {n}", ""),
            ),
        )
        for n in range(count)
    ]  # fmt: skip


def rivers(count):
    return Words({f"river of {n}": f"Old Stream{n}. It is long" for n in range(count)})


def test_a_memory_of_exact_prompts():
    edits, model = stream_of(12), rivers(12)
    report = run(model, edits, Stream(immediate=5))
    results = report.results()
    assert results["test/reliability/free"] == results["test/reliability/forced"] == 1
    # other wordings are not found: what was said before shares no word with the target
    assert results["test/generality/free"] == results["test/generality/forced"] == 0
    assert results["test/locality/free"] == results["test/locality/forced"] == 1
    assert results["test/locality/near/free"] == results["test/locality/far/forced"] == 1
    assert results["test/immediate/reliability/free"] == 1
    assert (results["test/edits"], results["test/reliability_ceiling"]) == (12, 1)
    assert (results["test/reliability/free_ci_low"], results["test/reliability/free_ci_high"]) == (1, 1)
    assert "test/generality/generality/free" not in results
    assert "test/portability/free" not in results
    assert [point.edits for point in report.curve] == [1, 10, 12]
    assert report.curve[1].scores["locality"]["probes"] == 20
    assert model.edited == [1] * 12
    assert isinstance(model, Judged)
    assert isinstance(model, Editor)
    assert isinstance(model, EditedModel)


def test_what_is_forgotten_shows_on_the_curve_and_not_right_after_an_edit():
    report = run(Words(capacity=5), stream_of(20), Stream())
    results = report.results()
    assert [point.scores["reliability"]["free"] for point in report.curve] == [1, 0.5, 0.25]
    assert results["test/reliability/free"] == 0.25
    assert results["test/immediate/reliability/free"] == 1
    assert len(report.immediate.probes) == 80


def test_changed_neighbours_count_against_locality_in_both_ways():
    edits, model, base = stream_of(4), rivers(4), rivers(4)
    model.edit = lambda given: [model.taught.update({one.prompt: one.target, f"river of {one.id[1:]}": "Old Lake"})
                                for one in given]  # fmt: skip
    results = run(model, edits, base=base).results()
    assert results["test/locality/near/free"] == 0
    assert results["test/locality/near/forced"] == 0.5  # "Old" is said as before
    assert results["test/locality/far/free"] == results["test/locality/far/forced"] == 1
    assert results["test/locality/free"] == 0.5
    assert results["test/locality/free_ci_low"] <= 0.5 <= results["test/locality/free_ci_high"]


def test_a_prompt_that_is_asked_for_many_edits_is_one_draw():
    edits = [
        replace(one, probes=(*one.probes[:2], probe(one.id, "locality/far", f"sum of {n % 8}", "")))
        for n, one in enumerate(stream_of(80))
    ]
    model, base = rivers(80), rivers(80)
    model.edit = lambda given: model.taught.update({"sum of 3": "13"} | {one.prompt: one.target for one in given})
    report = run(model, edits, base=base)
    results = report.results()
    far = [float(n % 8 != 3) for n in range(80)]
    wide, narrow = cluster_interval(far, [n % 8 for n in range(80)]), cluster_interval(far, range(80))
    assert (results["test/locality/far/free_ci_low"], results["test/locality/far/free_ci_high"]) == wide
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    # among all of locality as by itself, and other groups by their edits
    clusters = dict(zip((one.id for one in report.final.probes), report.final.clusters, strict=True))
    assert clusters["e3-locality/far-0"] == clusters["e11-locality/far-0"] == ("prompt", "sum of 3")
    assert {clusters[f"e3-{group}-0"] for group in ("generality", "locality/near")} == {("edit", "e3")}
    assert results["test/locality/free_ci_high"] - results["test/locality/free_ci_low"] > (wide[1] - wide[0]) / 2.1


def test_nothing_depends_on_the_batch():
    edits = stream_of(40)
    whole = [run(rivers(40), edits, Stream(batch=batch, immediate=7, retained=6, seed=4)) for batch in (1, 3, 100)]
    figures = []
    for report in whole:
        found = report.to_dict()
        found["results"].pop("test/edit_seconds")
        figures.append((found, [row["probe"] for row in report.immediate.rows()]))
    assert figures[0] == figures[1] == figures[2]
    assert whole[0].curve[1].scores["reliability"]["probes"] == 6


def test_seeds_draw_the_same_edits_again_and_others():
    def judged(seed):
        return {
            row["edit"] for row in run(rivers(60), stream_of(60), Stream(immediate=9, final=9, seed=seed)).final.rows()
        }

    assert judged(1) == judged(1) != judged(2)
    assert len(judged(1)) == 9


def test_the_unedited_model_is_judged_before_the_first_edit_and_then_only_timed():
    base, model, edits = rivers(30), rivers(30), stream_of(30)
    model.edit = lambda given, edit=model.edit: (asked.append(len(base.asked)), edit(given))
    asked = []
    run(model, edits, Stream(timed=2), base)
    assert asked[0] == asked[-1] == 60
    assert sum(prompt.startswith("river") for prompt in base.asked[:60]) == 30  # each once
    timed = base.asked[60:]
    assert len(timed) == 4 * len(set(timed))  # one round to warm up, three that count
    assert timed == model.asked[-len(timed) :]


def test_time_and_what_methods_add():
    ticks = itertools.count()
    told = []
    report = run(
        Words(), stream_of(10), Stream(batch=4, immediate=0), Words(), told=told.append,
        clock=lambda: float(next(ticks)), false_activation_rate=lambda: 0.01,
        perplexity=lambda model: 7.0 + len(model.taught),
    )  # fmt: skip
    results = report.results()
    assert results["test/edit_seconds"] == 0.25  # batches of 1, 4, 4 and 1, a tick each: whole ones count
    assert results["test/added_inference_share"] == 0
    assert results["test/false_activation_rate"] == 0.01
    assert (results["test/perplexity/before"], results["test/perplexity/after"]) == (7, 17)
    assert told == report.curve
    assert results.keys() >= set(MEANINGS) - {f"test/portability/{kind}" for kind in ("free", "forced")}


def test_the_clock_waits_for_every_device(monkeypatch):
    waited = []
    for name, answer in (("is_available", True), ("is_initialized", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert seconds() < seconds()
    assert waited == [0, 1, 0, 1]


def test_without_prompts_to_time_no_share_is_told():
    assert "test/added_inference_share" not in run(Words(), stream_of(2), Stream(timed=0)).results()


def test_edits_of_a_kind_are_reported_apart_and_counted_once():
    edits = stream_of(4)
    edits[3] = replace(edits[3], probes=(probe("e3", "reliability/new_object", edits[3].prompt, "New Town3"),))
    results = run(Words(capacity=1), edits).results()
    assert results["test/reliability/free"] == 0.25
    assert results["test/reliability/new_object/free"] == 1


def test_conflicting_edits_are_counted_and_the_newest_wins():
    edits = [Edit("a", "capital", "One"), Edit("b", "Capital", "Two"), Edit("c", "other", "Three")]
    report = run(Words(), [edits[0], Edit("b", "capital", "Two"), edits[2]])
    assert report.results()["test/reliability/free"] == pytest.approx(2 / 3)
    assert report.results()["test/reliability_ceiling"] == pytest.approx(2 / 3)
    assert report.to_dict()["conflicts"] == {"prompts": 1, "edits": 2, "duplicates": 0, "edited_locality_probes": 0}


@pytest.mark.parametrize(
    ("text", "right", "cut", "wanted"),
    [
        ("Quito", ["quito."], "line", True),
        (" Quito\nand more", ["Quito"], "line", True),
        ("Quito. It is high", ["Quito"], "line", False),
        ("Quito. It is high", ["Quito"], "sentence", True),
        ("St. Louis. It is big", ["St. Louis"], "sentence", True),
        ("St. Louis", ["St. Paul"], "sentence", False),
        ("Quito and more", ["Quito"], "sentence", False),
        ("the USSR", ["Soviet Union", "USSR"], "line", True),
        ("", ["A"], "line", False),  # an article only, which normalisation takes away
        ("a", ["A"], "line", True),
    ],
)
def test_when_free_text_is_an_answer(text, right, cut, wanted):
    assert answers(text, right, cut) is wanted


def test_cut_text():
    assert cut_text("\n One. Two\nThree", "line") == "One. Two"
    assert cut_text("\n One. Two\nThree", "sentence") == "One."
    assert cut_text("", "sentence") == ""


def test_probes_ask_once_what_they_share_and_tell_what_was_said():
    model, judge = Words({"a": "Rome and more"}), Judge(max_new_tokens=1)
    asked = [probe("1", "generality", "a", "Rome"), probe("2", "generality", "a ", "Paris", answers=["Rome"])]
    verdicts = judge(model, asked)
    assert model.asked == ["a"]
    assert verdicts.free_N.tolist() == [1, 1]
    assert verdicts.forced_N.tolist() == [1, 0]
    assert verdicts.rows()[1] == {
        "probe": "2-generality-0", "edit": "2", "group": "generality", "prompt": "a", "target": "Paris",
        "said": "Rome", "free": 1.0, "forced": 0.0,
    }  # fmt: skip
    assert joined([verdicts, verdicts]).means()["generality"] == {"free": 1, "forced": 0.5, "probes": 4}


def test_a_silent_model_has_nothing_to_be_forced_to():
    judge, silent = Judge(), Words({"a": ""})
    silent.said = lambda prompt: ""
    probes = [probe("1", "locality", "a", "")]
    judge.remember(silent, probes)
    verdicts = judge(silent, probes)
    assert np.isnan(verdicts.forced_N[0])
    assert verdicts.means() == {"locality": {"free": 1, "probes": 1}}
    assert verdicts.rows()[0]["forced"] is None


def test_misuse_is_told():
    with pytest.raises(ValueError, match="was not asked before"):
        Judge()(Words(), [probe("1", "locality", "a", "b")])
    judge, base = Judge(), Words()
    judge.remember(base, [probe("1", "locality", "a", "b c")])
    base.greedy_tokens = lambda prompts, targets: [Forced(np.zeros(1), np.zeros(1))]
    with pytest.raises(ValueError, match=r"1 tokens, wanted the target's 2.* must share a tokenizer"):
        judge(base, [probe("1", "locality", "a", "b c")])
    with pytest.raises(DataError, match="there are no edits"):
        run(Words(), [])
    with pytest.raises(DataError, match=r"stream.batch is 0: give at least 1"):
        Stream(batch=0)
    with pytest.raises(DataError, match=r"stream.final is 0"):
        Stream(final=0)


def test_a_model_is_asked_in_few_large_calls():
    model, calls = Words(), []
    model.generate = lambda prompts, max_new_tokens, ask=model.generate: (calls.append(len(prompts)), ask(prompts))[1]
    report = run(model, stream_of(1500), Stream(batch=64, immediate=10))
    assert [point.edits for point in report.curve] == [1, 10, 100, 1000, 1500]
    assert len(calls) == 1 + 10 + 5  # locality before, immediate, the curve
    assert max(calls) == 4 * 1500
    assert sum(model.edited) == 1500
    assert len(model.edited) <= 1500 / 64 + 10 + 5


def test_the_lifelong_figure_shows_each_aspect_that_was_asked():
    figure = lifelong(run(Words(capacity=5), stream_of(20)).curve)
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["reliability", "generality", "locality"]
    assert left.lines[0].get_xydata().tolist() == [[1, 1], [10, 0.5], [20, 0.25]]
    assert left.get_xscale() == "log"
    assert (left.get_title(), right.get_title()) == ("free greedy decoding", "teacher-forced")
    assert lifelong([]).axes[0].get_legend() is None


def test_perplexity_of_plain_text(tmp_path):
    file = tmp_path / "text.txt"
    words = " ".join(f"w{n}" for n in range(40))
    file.write_text(f"\n = A title of {words} = \n{words}\ntoo short\n{words} more\n", encoding="utf-8")
    ask = TextPerplexity(file, context=10, words=20)
    assert ask.prompts == [" ".join(f"w{n}" for n in range(10))] * 2
    assert len(ask.targets[0].split()) == 20
    assert ask(Words()) == pytest.approx(2)
    assert len(TextPerplexity(file, paragraphs=1).prompts) == 1
    with pytest.raises(DataError, match="no paragraph of 200 words"):
        TextPerplexity(file, context=100)
