import json
from dataclasses import replace

import pytest
from made_up_comparison import made_up

from kedit.comparing.measures import FIXED, amount, measure, seconds, share
from kedit.comparing.results import Costs, Figure, Kept
from kedit.comparing.results_file import from_json, read, to_json
from kedit.editing.sources import DataError


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_what_was_written_is_read_again_and_written_alike(tmp_path):
    comparison = made_up()
    text = to_json(comparison)
    assert from_json(text) == comparison
    assert to_json(from_json(text)) == text
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    assert read(tmp_path / "report.json") == comparison
    assert json.loads(text)["verdicts"][0]["use"] == ["RECIPE"]


def test_keys_are_stable_whatever_order_figures_were_found_in():
    comparison = made_up()
    turned = tuple(replace(one, figures=dict(reversed(one.figures.items()))) for one in comparison.contestants)
    text = to_json(replace(comparison, contestants=turned))
    assert text == to_json(comparison)
    record = json.loads(text)
    assert list(record)[:3] == ["version", "title", "date"]
    names = list(record["contestants"][1]["figures"])
    assert names[:16] == list(FIXED)
    assert names[16:18] == ["span_nll", "specificity_change"]


def test_an_interval_that_is_not_there_is_null():
    assert Figure(0.5, float("nan"), float("nan")) == Figure(0.5)
    comparison = made_up()
    first = replace(comparison.contestants[0], figures={"span_nll": Figure(1.5, float("nan"), float("nan"))})
    record = json.loads(to_json(replace(comparison, contestants=(first,))))
    assert record["contestants"][0]["figures"]["span_nll"]["low"] is None


def broken(path: str, value):
    """The made-up comparison's JSON with another value at a path such as contestants.1.costs.memory_bytes."""
    record = json.loads(to_json(made_up()))
    *way, last = path.split(".")
    place = record
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    place[int(last) if last.isdigit() else last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("version", 2, "'version' is 2, wanted 1"),
        ("date", "22 November", "wanted a day as 2026-11-22"),
        ("title", 7, "title: is 7, wanted str"),
        ("seeds", [], "'seeds' is empty"),
        ("seeds", [True], "seeds[0]: is true, wanted int"),
        ("facts", {"count": 3}, "facts: 'source' is missing"),
        ("facts.count", 0, "facts.count is 0"),
        ("facts.colour", "red", "no field is called 'colour'"),
        ("bases", [], "'bases' is empty"),
        ("bases.0.architecture", "decoder", "wanted one of 'causal', 'encoder-decoder'"),
        ("bases.0.knows.mean", 1.2, "realm-gpt2: knows: 1.2 is no share"),
        ("contestants", {}, "contestants: is {}, wanted list"),
        ("contestants.1.name", "RECIPE", "two are named 'RECIPE (realm-gpt2)'"),
        ("contestants.1.base", "other", "base 'other' is none of realm-gpt2, realm-bart"),
        ("contestants.1.method", "rome", "contestants[1]: method: is 'rome', wanted one of"),
        ("contestants.1.status", "failed", "is failed, which wants a reason"),
        ("contestants.1.reason", "slow", "is done, which wants no reason"),
        ("contestants.1.together", 1, "together: is 1, wanted bool"),
        ("contestants.1.figures.speed", {"mean": 1.0}, "no figure is called 'speed'"),
        ("contestants.1.figures.span_nll", {"mean": 1.0, "low": 0.5}, "one end of an interval"),
        ("contestants.1.figures.span_nll", {"mean": 1.0, "low": 2.0, "high": 1.0}, "upside down"),
        ("contestants.1.figures.span_nll", {"mean": 1.0, "by_seed": [1.0, 1.0, 1.0]}, "3 seeds, the comparison has 2"),
        ("contestants.1.figures.locality/free", {"mean": 97}, "locality/free: 97.0 is no share from 0 to 1"),
        ("contestants.1.figures.span_nll", {"mean": float("nan")}, "nan is no finite number"),
        ("contestants.1.retention.0.facts", 10, "retention is after [10, 10, 100, 1000] facts"),
        ("contestants.1.costs.memory_bytes", -1, "costs.memory_bytes is -1.0"),
        ("contestants.1.costs.seconds_per_fact", float("inf"), "costs.seconds_per_fact is inf"),
        ("contestants.1.costs.can_take_out", "yes", 'can_take_out: is "yes", wanted bool'),
        ("contestants.1.examples.0.aspect", "colour", "examples[0]: aspect: is 'colour'"),
        ("contestants.9.figures", {"span_nll": {"mean": 1.0}}, "is not applicable and has figures"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_place(path, value, said):
    with pytest.raises(DataError) as error:
        from_json(broken(path, value), "logs/a/report.json")
    assert said in str(error.value)
    assert str(error.value).startswith("logs/a/report.json: ")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(DataError, match=r"report\.json: "):
        from_json(text)


def test_a_report_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read(tmp_path / "report.json")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path / "report.json")


def test_what_contradicts_itself_is_not_written():
    comparison = made_up()
    odd = replace(comparison.contestants[1], retention=(Kept(0, Figure(0.5)),), costs=Costs())
    with pytest.raises(DataError, match="retention is after"):
        to_json(replace(comparison, contestants=(odd,)))


def test_figures_are_known_by_aspect_group_and_kind():
    assert measure("portability/two_hops/free").label == "Inferred: two hops"
    assert measure("locality/near/forced").label == "Unrelated kept: near (forced)"
    assert measure("span_nll").better == "lower"
    assert [measure(name) for name in ("portability", "portability/free/free/free", "style/free", "span_nll/free")] == [
        None
    ] * 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (0.0004, "<0.1 %"),
        (0.004, "0.4 %"),
        (0.114, "11 %"),
        (0.994, "99.4 %"),
        (0.9996, ">99.9 %"),
        (1, "100 %"),
    ],
)
def test_nearly_all_is_not_written_as_all(value, text):
    assert plain(share(value)) == text


def test_numbers_have_short_units():
    assert [plain(share(value, sign=True)) for value in (0.124, -0.03, 0.001, -0.001)] == [
        "+12 %",
        "−3 %",
        "0 %",
        "0 %",
    ]
    times = (0, 6e-7, 0.0021, 0.0996, 0.34, 59.9, 61, 447, 3599, 5400)
    assert [plain(seconds(value)) for value in times] == [
        "none", "<0.1 ms", "2.1 ms", "100 ms", "0.34 s", "1 min", "1 min", "7.5 min", "1 h", "1.5 h"
    ]  # fmt: skip
    sizes = (0, 61, 999.6, 1771, 334e6, 1.24e9, 2e12)
    assert [plain(amount(value)) for value in sizes] == [
        "nothing",
        "61 B",
        "1 kB",
        "1.8 kB",
        "334 MB",
        "1.2 GB",
        "2 TB",
    ]
