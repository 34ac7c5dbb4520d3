"""A comparison as a whole, of ways that need no model: figures, what fails, what is run again, what a kill costs."""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_ways import Apart, Fails, GoesOn, Learns, MadeBase, MadeFacts, NoBackbone, Notebook, Plain, Unfit

from kedit.comparing import schedule
from kedit.comparing.command import compare
from kedit.comparing.facts import FactSet
from kedit.comparing.identity import described
from kedit.comparing.record import Judging
from kedit.comparing.trial import run_trial
from kedit.editing.probes import Fact
from kedit.editing.sources import DataError, Question
from kedit.running.runs import Run
from kedit.running.taken import Baseline

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
JUDGING = Judging(timed=2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "START", "fork")  # no imports anew
    monkeypatch.setattr(schedule, "SECONDS", 0.01)


def made(contestants, count=12, seeds=(0, 1), **options):
    bases = {"small": MadeBase(NoBackbone())}
    return compare(bases, {"plain": Plain(), **contestants}, MadeFacts(count), list(seeds), JUDGING, **options)


def of(comparison, name):
    return next(one for one in comparison.contestants if one.name == name)


def test_figures_are_those_of_what_was_said():
    found = made({"learns": Learns(), "spoils": Learns(spoils=True)})
    learns, spoils, plain = of(found, "learns"), of(found, "spoils"), of(found, "plain")
    for name, one in (("reliability", 1), ("generality", 1), ("portability", 0), ("locality", 1)):
        assert learns.figures[f"{name}/free"].mean == one
    assert learns.figures["portability/one_hop/free"].mean == 0
    assert spoils.figures["locality/free"].mean == 0
    assert plain.figures["reliability/free"].mean == 0
    assert plain.figures["locality/free"].mean == 1
    assert learns.figures["reliability/free"].by_seed == (1.0, 1.0)
    # of the three kinds of probes of new facts two are said, at 0.5 nats, and one is not, at 4
    assert learns.figures["span_nll"].mean == pytest.approx((0.5 + 0.5 + 4) / 3)
    assert learns.figures["specificity_change"].mean == 0
    assert learns.costs.bytes_per_fact == 20
    assert [one.facts for one in learns.retention] == [1, 10, 12]


@pytest.mark.parametrize(("way", "after"), [(Learns(most=8), [1, 0.4, 4 / 12]), (GoesOn(most=8), [1, 0.4, 4 / 12])])
def test_retention_counts_all_facts_taught_so_far(way, after):
    kept = of(made({"way": way}), "way").retention
    assert [point.reliability.mean for point in kept] == pytest.approx(after)


def test_facts_are_taught_at_once_or_to_what_was_taught_before(monkeypatch):
    import made_ways

    class Counted(made_ways.Notebook):
        def edit(self, facts):
            super().edit(facts)
            with open(f"calls-{os.getpid()}", "a") as file:
                file.write(f"{len(facts)} ")

    monkeypatch.setattr(made_ways, "Notebook", Counted)
    made({"learns": Learns()}, seeds=[0])
    made({"goes on": GoesOn()}, seeds=[0], run=Run("other"))
    assert {path.read_text() for path in Path().glob("calls-*")} >= {"1 10 12 ", "1 9 2 "}


def test_each_subject_in_a_model_of_its_own_is_not_ranked_and_keeps_nothing():
    found = of(made({"apart": Apart(most=4)}), "apart")
    assert not found.together
    assert found.figures["reliability/free"].mean == 1  # two facts at a time
    assert found.retention == ()
    assert found.costs.bytes_per_fact == 20


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("data", "rank is 0: give at least 1"),
        ("killed", "was killed (SIGKILL)"),
        ("ours", "ZeroDivisionError: ours"),
        ("ended", "was killed (SIGTERM)"),
    ],
)
def test_one_that_fails_is_named_and_costs_the_others_nothing(how, reason):
    found = made({"fails": Fails(how=how), "learns": Learns()})
    assert of(found, "fails").status == "failed"
    assert reason in of(found, "fails").reason
    assert of(found, "learns").status == "done"
    assert reason.split(":")[0] in Path("logs/compare/report.html").read_text()


def test_what_does_not_apply_says_why():
    found = of(made({"unfit": Unfit()}), "unfit")
    assert (found.status, found.reason) == ("not applicable", "wants another model")


def test_what_is_there_is_not_done_again_and_what_changed_is(tmp_path):
    told = str(tmp_path / "told")
    first = made({"one": Learns(told=told), "two": Learns(told=told, seconds=0.001)})
    assert Path(told).read_text() == "0\n1\n0\n1\n"
    second = made({"one": Learns(told=told), "two": Learns(told=told, seconds=0.002)})
    assert Path(told).read_text() == "0\n1\n" * 3
    assert first.contestants[1].figures == second.contestants[1].figures
    assert first.contestants[1].costs == second.contestants[1].costs
    made({"one": Learns(told=told)}, count=13)  # other facts
    assert Path(told).read_text() == "0\n1\n" * 4


def test_what_a_perplexity_is_of_counts_by_its_content(tmp_path):
    told, text = tmp_path / "told", tmp_path / "plain.txt"
    way = {"learns": Learns(told=str(told))}

    def run():
        bases, judging = {"small": MadeBase(NoBackbone())}, Judging(timed=0, perplexity=str(text))
        return compare(bases, {"plain": Plain(), **way}, MadeFacts(), judging=judging)

    text.write_text("one two three four " * 10)
    found = of(run(), "learns")
    assert found.figures["perplexity/after"].mean == pytest.approx(math.exp(4))
    run()
    assert told.read_text() == "0\n"
    text.write_text("five six seven eight " * 10)
    run()
    assert told.read_text() == "0\n0\n"


def test_where_a_fact_stood_does_not_matter():
    edit = MadeFacts().load()[0]
    assert described(replace(edit, where="a:1")) == described(replace(edit, where="b:2"))
    assert described(edit) != described(replace(edit, target="else"))


def test_facts_without_subjects_are_each_behind_their_own_text(monkeypatch):
    class Nameless(MadeFacts):
        def _edit(self, number):
            return replace(super()._edit(number), subject="")

    read = []
    monkeypatch.setattr(Notebook, "generate", lambda self, prompts, **_: read.extend(prompts) or ["?"] * len(prompts))
    trial = run_trial(Plain(), MadeBase(NoBackbone()), FactSet(Nameless().load()), JUDGING, 0)
    assert "The river of Town 0 is Name 0. The river of Town 0 is" in read
    assert len(trial.in_context) == 12


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
def test_memory_is_that_of_teaching_whatever_was_used_before():
    before = bytearray(300 * 2**20)
    del before
    memory = Baseline(torch.device("cpu"), 0.0)
    before = bytearray(b"1") * (300 * 2**20)
    del before
    memory.forget_peak()
    used = bytearray(200 * 2**20)
    used[:: 2**12] = b"1" * len(used[:: 2**12])
    del used
    assert 150 * 2**20 < memory.peak < 290 * 2**20


def test_a_damaged_record_is_made_again():
    made({"one": Learns()}, seeds=[0])
    (record,) = Path("logs/compare/trials").glob("small-one-0-*.json")
    whole = json.loads(record.read_text())
    record.write_text(record.read_text()[:-100])
    made({"one": Learns()}, seeds=[0])
    assert json.loads(record.read_text())["rows"] == whole["rows"]


def test_killed_twice_it_ends_with_the_same_numbers(tmp_path):
    told = tmp_path / "told"
    ways = {f"way {number}": Learns(told=str(told), seconds=0.3, most=number + 1) for number in range(3)}
    context = multiprocessing.get_context("fork")
    for kill_after in (1, 3):
        process = context.Process(target=made, args=(ways,))
        process.start()
        until = time.monotonic() + 60
        while not told.exists() or told.read_text().count("\n") <= kill_after:
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        time.sleep(1.5)  # the trial ends with it
    found = made(ways)
    whole = made(ways, run=Run("whole"))
    for one, other in zip(found.contestants, whole.contestants, strict=True):
        assert (one.figures, one.retention, one.examples) == (other.figures, other.retention, other.examples)
    begun = told.read_text().count("\n")
    assert begun <= 6 + 2 + 6  # each trial, two that were cut off, and each of the whole one


def test_who_stops_twice_does_not_wait_for_a_process_that_does_not_hear(monkeypatch):
    def looks(self):
        if self.done == 1 and time.monotonic() - self.since > 1:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            raise KeyboardInterrupt

    monkeypatch.setattr(schedule.Progress, "tick", looks)
    monkeypatch.setattr(schedule, "PATIENCE", 300)
    others = {*multiprocessing.active_children()}  # of other tests
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made({"deaf": Fails(how="deaf")}, seeds=(0,))
    assert time.monotonic() - began < 100
    assert {*multiprocessing.active_children()} <= others


def test_stopped_by_the_user_it_says_what_is_kept(tmp_path, monkeypatch, capsys):
    calls = []

    def looks(self):
        calls.append(self)
        if self.done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(schedule.Progress, "tick", looks)
    with pytest.raises(KeyboardInterrupt):
        made({"learns": Learns(), "fails": Fails()})
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "compare: 3 of 5 trials are finished and kept: the same command goes on from there"
    with pytest.raises(KeyboardInterrupt):
        made({"fails": Fails(), "learns more": Learns(most=3)})
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "compare: 1 of 5 trials are finished and kept: the same command goes on from there"
    assert calls
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "START", "fork")
    assert of(made({"learns": Learns()}), "learns").status == "done"


def test_general_questions_are_asked_before_and_after(tmp_path):
    class Asked:
        def __iter__(self):
            return iter([Question("Who?", ["I do not know"]), Question("The river of Town 0 is", ["Name 0"])])

    figures = of(made({"learns": Learns()}, questions=Asked()), "learns").figures
    assert (figures["qa/before"].mean, figures["qa/after"].mean) == (0.5, 1.0)


def test_what_a_reader_must_know_is_a_warning(capsys):
    bases = {"small": MadeBase(NoBackbone())}
    found = compare(bases, {"plain": Plain(), "learns": Learns()}, MadeFacts(probes=False), judging=JUDGING)
    assert "no probes of generality or locality or portability" in found.warnings[0]
    assert found.warnings[1].startswith("One seed")
    assert found.bases[0].knows.mean == 0
    told = capsys.readouterr().err
    # before anything is taught
    assert told.index("as a teacher it has little to give") < told.index("learns")


def test_subjects_without_a_definition_are_told_of_where_others_have_one():
    class Defined(MadeFacts):
        def define(self, edits):
            return [Fact("x", "Town 0", "A town with a river.")]

        def undefined(self):
            return ["Town 1", "Town 2", "Town 3"]

    bases = {"small": MadeBase(NoBackbone())}
    found = compare(bases, {"plain": Plain()}, Defined(5), judging=JUDGING)
    assert found.warnings[0].startswith("2 of 3 subjects are not defined, as 'Town 1': ")
    assert not any(
        "defined" in one for one in compare(bases, {"plain": Plain()}, MadeFacts(5), judging=JUDGING).warnings
    )


def test_facts_that_contradict_one_another_are_counted():
    class Torn(MadeFacts):
        def _edit(self, number):
            edit = super()._edit(number % 10)
            return replace(edit, id=str(number), target=f"Name {number}", probes=())

    found = compare({"small": MadeBase(NoBackbone())}, {"plain": Plain()}, Torn(), judging=JUDGING)
    assert "4 facts contradict another one: at most 83" in " ".join(found.warnings)


def test_a_model_that_knows_the_facts_has_nothing_to_learn(capsys, monkeypatch):
    monkeypatch.setattr(Notebook, "_says", lambda self, prompt: "Name 0")
    found = compare({"small": MadeBase(NoBackbone())}, {"plain": Plain(), "l": Learns()}, MadeFacts(2), judging=JUDGING)
    assert found.bases[0].knows.mean == 0.5
    told = capsys.readouterr().err
    assert told.index("small knows 50") < told.index("small: l")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"contestants": {"learns": Learns()}}, "none is the model as it is"),
        ({"bases": {}}, "bases is empty"),
        ({"seeds": [1, 1]}, "none twice"),
        (
            {"contestants": {"plain": Plain(), "x": Learns(bases=["gpt"])}},
            "contestants.x.bases: 'gpt' is none of bases: small",
        ),
        ({"contestants": {"plain": Plain(), "x": Learns(bases=[])}}, "contestants.x.bases is empty"),
        ({"contestants": {"plain": Plain(), 1: Learns()}}, "contestants: 1 is no name"),
        ({"bases": {"a" * 101: MadeBase(NoBackbone())}}, "bases: 'aaa.* is no name: wanted one line"),
        ({"title": "two\nlines"}, "title: 'two.* is no name"),
        ({"seeds": []}, "wanted at least one number from 0"),
        ({"seeds": [2**63]}, "wanted at least one number from 0"),
        ({"judging": Judging(perplexity="absent.txt")}, "judging.perplexity"),
        ({"run": Run("a", numbered=True)}, "give each a name by run.name"),
        ({"facts": MadeFacts(0)}, "no facts to teach"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(change, words):
    given = {"bases": {"small": MadeBase(NoBackbone())}, "contestants": {"plain": Plain()}, "facts": MadeFacts()}
    with pytest.raises(DataError, match=words):
        compare(**given | change)
    assert not Path("logs").exists()
