"""The page as a real browser shows it."""

from dataclasses import replace
from pathlib import Path

import pytest
from headless_browser import CHROMIUM, Browser
from made_up_comparison import made_up
from test_report_page import hostile

from kedit.comparing.report_page import report_page
from kedit.comparing.results import Costs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was not opened")
PHONE, DESK = 390, 1280
MEASURES = Path(__file__).with_name("page_measures.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written(report_page(made_up()), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    return written(report_page(hostile()), tmp_path_factory.mktemp("hostile"))


def written(html: str, folder: Path) -> Path:
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    return file


def column(browser: Browser, key: str) -> list[str]:
    """The contestants of the first model in the main table, and their numbers in a column, from top to bottom."""
    head = f"document.querySelector('[data-name=main] th[data-key=\"{key}\"]')"
    return browser.evaluate(
        f"[...document.querySelector('[data-name=main]').tBodies[0].rows].slice(1)"
        f".map(row => row.cells[0].dataset.value + '=' + (row.cells[{head}.cellIndex]?.dataset.value ?? ''))"
    )


@pytest.fixture(scope="module")
def page_in_capitals(tmp_path_factory):
    shown = made_up()
    loud = replace(shown, contestants=tuple(replace(one, name=one.name.upper()[:14]) for one in shown.contestants))
    return written(report_page(loud), tmp_path_factory.mktemp("capitals"))


@pytest.fixture(scope="module")
def page_of_long_costs(tmp_path_factory):
    longest = Costs(87_000, 0.096, 12.34, 999_000_000, 9e11, False, "")
    shown = made_up()
    costly = replace(shown, contestants=tuple(replace(one, costs=longest) for one in shown.contestants))
    return written(report_page(costly), tmp_path_factory.mktemp("costs"))


def test_it_opens_without_errors_and_asks_for_nothing_else(browser, page):
    browser.open(page, DESK)
    assert browser.complaints() == []
    assert browser.fetched() == [page.as_uri()]
    drawn = (
        "[...document.querySelectorAll('svg[role=img]')].filter(one => one.getBoundingClientRect().width > 300).length"
    )
    assert browser.evaluate(drawn) == 4
    assert browser.evaluate("document.querySelectorAll('.marker').length") > 100


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(browser, page):
    browser.open(page, DESK)
    before = column(browser, "locality/free")
    click = "document.querySelector('[data-name=main] th[data-key=\"%s\"] button').click()"
    browser.evaluate(click % "locality/free")
    best_first = column(browser, "locality/free")
    values = [float(row.split("=")[1]) for row in best_first[:9]]
    assert values == sorted(values, reverse=True)
    assert best_first[0] == "Model as it is=1.0"
    assert before != best_first
    assert sorted(before) == sorted(best_first)
    assert best_first[9:] == before[9:]  # those without figures stay last
    said = "document.querySelector('[data-name=main] th[data-key=\"locality/free\"]').getAttribute('aria-sort')"
    assert browser.evaluate(said) == "descending"
    browser.evaluate(click % "locality/free")
    assert column(browser, "locality/free")[:9] == best_first[8::-1]
    assert browser.evaluate(said) == "ascending"
    browser.evaluate(click % "seconds_per_fact")
    quick_first = [float(row.split("=")[1]) for row in column(browser, "seconds_per_fact")[:9]]
    assert quick_first == sorted(quick_first)
    assert browser.evaluate("document.querySelectorAll('[data-name=main] [aria-sort]').length") == 1
    browser.evaluate(click % "kept")
    assert column(browser, "kept")[8].startswith("Distilled, each fact alone=")  # not measured: behind the others
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("texts", ["page", "hostile_page", "page_in_capitals"])
def test_nothing_stands_out_of_the_window_and_no_label_is_cut(browser, request, width, texts):
    browser.open(request.getfixturevalue(texts), width)
    assert browser.complaints() == []
    browser.evaluate(MEASURES)
    browser.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("outside()") == []
    assert browser.evaluate("smallest()") > 11
    assert browser.evaluate("cut()") == []


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("costs", ["page", "page_of_long_costs"])
def test_numbers_of_a_card_stand_apart(browser, request, width, costs):
    browser.open(request.getfixturevalue(costs), width)
    browser.evaluate(MEASURES)
    assert browser.evaluate("overfull()") == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_labels_of_drawings_do_not_cover_one_another(browser, page, width):
    browser.open(page, width)
    browser.evaluate(MEASURES)
    assert browser.evaluate("covered()") == []


def test_the_answer_is_seen_without_scrolling(browser, page):
    browser.open(page, DESK, 900)
    assert browser.evaluate("document.querySelector('.verdict').getBoundingClientRect().bottom") < 900
    browser.open(page, PHONE, 844)
    assert browser.evaluate("document.querySelector('.card .price').getBoundingClientRect().bottom") < 844


def test_text_has_contrast(browser, page):
    browser.open(page, DESK)
    browser.evaluate(MEASURES)
    assert browser.evaluate("faint()") == []


def test_no_script_of_a_text_runs(browser, hostile_page, tmp_path):
    html = hostile_page.read_text(encoding="utf-8")
    browser.open(written(html.replace("<main>", "<main><script>document.title = 'run'</script>"), tmp_path), DESK)
    assert browser.evaluate("document.title") != "run"  # the policy forbids even what was not escaped
    assert browser.complaints() != []


def test_it_prints_with_all_unfolded_on_a_sheets_width(browser, page):
    sheet = 1031  # A4 across, less its margins, in pixels of CSS
    browser.open(page, sheet)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= sheet
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("document.querySelectorAll('details[open]').length") == 0
    browser.call("Emulation.setEmulatedMedia", media="")
    assert len(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]) > 50_000
