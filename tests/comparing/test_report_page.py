import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from made_up_comparison import made_up
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kedit.comparing.charts import gain_and_damage, retention, styles
from kedit.comparing.columns import Column, all_columns, main_columns
from kedit.comparing.drawing import kept_apart
from kedit.comparing.measures import seconds
from kedit.comparing.report import write_report
from kedit.comparing.report_board import write_board
from kedit.comparing.report_page import report_page
from kedit.comparing.report_text import report_text, summary_text
from kedit.comparing.results import Contestant, Costs, Example, Figure, Kept
from kedit.comparing.results_file import read
from kedit.comparing.standings import standings
from kedit.comparing.verdict import verdicts

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }} & "quoted" | `code`'


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._hidden = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag if tag in ("style", "script") else self._hidden

    def handle_endtag(self, tag):
        self._hidden = "" if tag == self._hidden else self._hidden

    def handle_data(self, data):
        self.text += "" if self._hidden else f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hostile():
    """The made-up comparison with markup wherever there is text."""
    comparison = made_up()
    odd = [
        replace(each, name=f"{each.name} {HOSTILE}", reason=each.reason and HOSTILE,
                costs=replace(each.costs, take_out=HOSTILE),
                examples=tuple(replace(one, prompt=HOSTILE, wanted=HOSTILE, said=HOSTILE) for one in each.examples))
        for each in comparison.contestants
    ]  # fmt: skip
    odd = [replace(each, base=HOSTILE) if each.base == "realm-bart" else each for each in odd]
    bases = (comparison.bases[0], replace(comparison.bases[1], name=HOSTILE))
    facts = replace(comparison.facts, source=HOSTILE)
    return replace(comparison, title=HOSTILE, command=HOSTILE, config=HOSTILE, warnings=(HOSTILE,), facts=facts,
                   bases=bases, contestants=tuple(odd))  # fmt: skip


def test_whatever_a_text_holds_stays_text():
    page = Page(report_page(hostile()))
    ours = Page(report_page(made_up()))
    assert len(page.all("script")) == len(ours.all("script")) == 1
    assert not page.all("img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("alert(2)") > 50
    assert "{{ 7 * 7 }}" in page.text


def test_nothing_is_fetched_and_only_its_own_script_may_run():
    html = report_page(made_up())
    policy = next(
        tag["content"] for tag in Page(html).all("meta") if tag.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    addresses = [value for _, tag in Page(html).tags for name in ("src", "href") if (value := tag.get(name))]
    assert addresses == ["data:,"]
    assert "@import" not in html
    assert "url(" not in html


def test_the_page_says_what_the_comparison_found():
    comparison = made_up()
    text = " ".join(Page(report_page(comparison)).text.split())
    assert text.index("Which should I use, and what does it cost me?") < text.index("Side by side")
    for contestant in comparison.contestants:
        assert contestant.name in text
        assert contestant.reason in text
    for probe in comparison.contestants[0].examples:
        assert f"{probe.prompt} …" in text
    for warning in comparison.warnings:
        assert warning in text
    assert comparison.command in text


def test_tables_and_drawings_are_named_for_those_who_do_not_see_them():
    page = Page(report_page(made_up()))
    assert {tag["scope"] for tag in page.all("th")} == {"col", "row", "rowgroup"}
    drawings = [tag for tag in page.all("svg") if tag.get("role") == "img"]
    ids = [tag["id"] for _, tag in page.tags if tag.get("id")]
    assert len(drawings) == 8  # two charts of two models, wide and narrow
    assert len(ids) == len(set(ids))
    for drawing in drawings:
        assert set(drawing["aria-labelledby"].split()) <= set(ids)
    assert all(tag.get("aria-hidden") == "true" for tag in page.all("svg") if tag not in drawings)


def test_a_comparison_of_next_to_nothing_has_a_page_too():
    comparison = made_up()
    bare = replace(
        comparison, bases=comparison.bases[:1], contestants=(Contestant("A", "realm-gpt2", "recipe"),), warnings=()
    )
    html = report_page(bare)
    assert "<svg xmlns" not in html
    assert "None to recommend" in html
    assert report_text(bare)
    failed = replace(bare, contestants=(Contestant("A", "realm-gpt2", "recipe", "failed", "no memory"),))
    assert "no memory" in report_page(failed)
    assert "A: failed, no memory" in report_text(failed)


def test_the_best_are_marked_with_all_that_cannot_be_told_from_them():
    def marks(*figures: Figure | None, better: str = "higher", base: int = -1, write=str) -> str:
        group = [Contestant(str(number), "m", "base" if number == base else "recipe") for number in range(len(figures))]
        column = Column("x", "X", "", better, lambda one: figures[int(one.name)], write)
        return "".join("x" if cell.best else "." for cell in column.cells(group))

    a, b, c, d = Figure(0.9, 0.88, 0.92), Figure(0.87, 0.85, 0.89), Figure(0.5, 0.4, 0.6), Figure(0.2, 0.1, 0.3)
    assert marks(a, b, c, d) == "xx.."
    assert marks(a, b, c, d, better="lower") == "...x"
    assert marks(a, b, c, d, better="neither") == "...."
    assert marks(a, b, c) == "..."  # most of them
    assert marks(a, None, c) == "x.."
    assert marks(a) == "."
    assert marks(a, c, d, base=0) == ".x."
    assert marks(Figure(1.0), Figure(1.0), Figure(2.0), Figure(3.0), better="lower") == "xx.."
    assert marks(Figure(0.9), Figure(0.8)) == "x."
    times = [Figure(value) for value in (6e-7, 5e-7, 0.3, 0.4)]
    assert marks(*times, better="lower", write=seconds) == "xx.."  # nobody can read which is the less


def test_facts_of_which_nothing_was_learned_are_told_of():
    shown = made_up()
    done = next(one for one in shown.contestants if one.status == "done" and one.method != "base")
    few = replace(shown, contestants=tuple(replace(one, unlearned=1234 * (one is done)) for one in shown.contestants))
    for text in (report_page(few), report_text(few), summary_text(few)):
        assert "nothing was learned of 1,234 facts" in text
    assert "nothing was learned" not in report_page(shown) + report_text(shown) + summary_text(shown)


def test_columns_are_those_that_were_measured():
    comparison = made_up()
    assert [column.key for column in main_columns(comparison)] == [
        "right", "reliability/free", "generality/free", "portability/free", "locality/free", "kept",
        "seconds_per_fact", "training_seconds", "added_inference_share",
    ]  # fmt: skip
    assert [len(columns) for columns in all_columns(comparison).values()] == [8, 8, 6]
    bare = replace(comparison, contestants=(Contestant("A", "realm-gpt2", "recipe"),))
    assert [column.key for column in main_columns(bare)] == [
        "seconds_per_fact",
        "training_seconds",
        "added_inference_share",
    ]


@pytest.mark.parametrize("width", [358, 580])
def test_drawings_are_xml_with_a_point_for_each_figure(width):
    group = made_up().of("realm-gpt2")
    looks = styles(group)
    assert len({(look.marker, look.dash) for look in looks.values()}) == min(len(group), 10)
    kept = ElementTree.fromstring(retention(group, looks, "a", width))
    places = "{http://www.w3.org/2000/svg}g"
    assert len(kept.findall(places)) == sum(len(one.retention) for one in group)
    gained = ElementTree.fromstring(gain_and_damage(standings(group), looks, "b", width))
    assert len(gained.findall(places)) == len(standings(group)) == 9


def test_labels_keep_apart_and_inside():
    middles = kept_apart([50, 50, 52, 200], [15, 15, 30, 15], 0, 205)
    assert middles[3] == 197.5
    assert sorted(middles) == middles
    edges = [
        (middle - height / 2, middle + height / 2) for middle, height in zip(middles, [15, 15, 30, 15], strict=True)
    ]
    assert all(upper[1] <= lower[0] for upper, lower in pairwise(edges))


def test_a_curve_of_one_point_and_harm_without_intervals_are_drawn():
    one = Contestant("A", "m", "recipe", retention=(Kept(50, Figure(0.9)),),
                     figures={"reliability/free": Figure(0.9), "locality/free": Figure(0.99)})  # fmt: skip
    assert "50" in retention([one], styles([one]), "a", 580)
    assert "A" in gain_and_damage(standings([one]), styles([one]), "b", 358)


def test_markdown_has_the_verdict_and_whole_tables():
    comparison = made_up()
    text = report_text(comparison)
    for one in verdicts(comparison):
        assert one.sentences[1].replace("[", "\\[").replace("]", "\\]") in text
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 12
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "- LoRA, rank 64: failed, stopped after 312 s" in text


def test_markdown_takes_no_text_for_marks():
    text = report_text(hostile())
    assert "<script" not in text.split("## Again")[0]
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_three_files_are_written_and_the_first_can_be_read_again(tmp_path):
    comparison = made_up()
    half = Example("A half \ud800", "a", "b\udc00", "reliability", False)
    odd = replace(comparison.contestants[0], examples=(half,))
    files = write_report(comparison, tmp_path / "logs" / "a")
    assert [file.name for file in files] == ["report.html", "report.md", "report.json"]
    assert read(files[2]) == comparison
    write_report(replace(comparison, contestants=(odd,)), tmp_path / "logs" / "a")
    assert "A half ?" in files[0].read_text(encoding="utf-8")


def test_tensorboard_has_the_same_figures(tmp_path):
    comparison = made_up()
    write_board(comparison, tmp_path)
    recipe = EventAccumulator(str(tmp_path / "realm-gpt2" / "RECIPE")).Reload()
    tags = recipe.Tags()["scalars"]
    assert {"compare/reliability/free", "compare/reliability/free_ci_low", "compare/right", "compare/damage"} <= set(
        tags
    )
    points = [(event.step, round(event.value, 4)) for event in recipe.Scalars("compare/retention")]
    assert points == [(1, 1.0), (10, 1.0), (100, 0.99), (1000, 0.985)]
    assert recipe.Scalars("compare/costs/training_seconds")[0].value == 447
    assert "compare/costs/can_take_out" in tags
    whole = EventAccumulator(str(tmp_path)).Reload()
    assert {"verdict/realm-gpt2/text_summary", "report/text_summary"} <= set(whole.Tags()["tensors"])
    assert not (tmp_path / "realm-gpt2" / "KILM").exists()


def test_a_name_is_no_way_out_of_the_folder(tmp_path):
    comparison = made_up()
    odd = replace(comparison.contestants[1], name="../../out/of it", costs=Costs())
    write_board(replace(comparison, contestants=(odd,)), tmp_path / "board")
    assert [path.name for path in tmp_path.iterdir()] == ["board"]
