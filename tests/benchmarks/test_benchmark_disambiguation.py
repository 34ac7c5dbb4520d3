import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit.benchmarks import AidaTesta, Kore50, Rss500
from kedit.benchmarks.disambiguation import align, context_window
from kedit.editing.sources import DataError

TEXT = "Simmons of London scored ** runs ; London , U.S. , and SIMMONS of Kent ran ."
WIKI = "http://en.wikipedia.org/wiki/"


def label(text, surface, entity="Q1", name="Somebody", occurrence=0):
    start = -1
    for _ in range(occurrence + 1):
        start = text.index(surface, start + 1)
    return {"span": [start, start + len(surface)], "entity_id": entity, "name": name}


def mention(surface, gold, *pages):
    listed = [{"title": page.split("_(")[0], "url": WIKI + page, "in_links": 10 * n} for n, page in enumerate(pages)]
    return {"mention": surface, "gold_url": "NIL" if gold is None else WIKI + gold, "candidates": listed}


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


DOCUMENT = {
    "id": 6,
    "text": TEXT,
    "labels": [
        label(TEXT, "Simmons", name="Phil Simmons"),
        label(TEXT, "London", "Q84", "London"),
        label(TEXT, "London", "Q92561", "London (Ontario)", occurrence=1),
        label(TEXT, "U.S.", "<NIL>", "Unknown"),
        label(TEXT, "SIMMONS", name="Phil Simmons"),
        label(TEXT, "Kent", "Q23298", "Kent"),
    ],
}
MENTIONS = [
    mention("Phil Simmons", "Phil_Simmons", "Phil_Simmons", "Gene_Simmons", "Simmons_(band)"),
    mention("London", "London_(Ontario)", "London_(Ontario)", "London_(punk_band)", "Caf%C3%A9_London"),
    mention("u. S.", None, "United_States"),
    mention("Bromley", "Bromley", "Bromley"),
    mention("Kent", "Kent", "Kent"),
]


@pytest.fixture
def aida(tmp_path):
    write_lines(tmp_path / "aida-conll-dev.benchmark.jsonl", DOCUMENT)
    lost = {"doc_id": 1, "mentions": [mention("London", "London", "London")]}
    write_lines(tmp_path / "aida_testa_candidates.jsonl", lost, {"doc_id": 7, "mentions": MENTIONS})
    return tmp_path


def test_aida_aligns_mentions_with_gold_spans(aida):
    source = AidaTesta(str(aida), context_characters=1000)
    questions = list(source)
    assert [question.mention for question in questions] == ["Simmons", "London", "U.S.", "Kent"]
    assert [question.gold for question in questions] == ["Phil Simmons", "London (Ontario)", "", "Kent"]
    # of two spans that read London, the one that the gold label speaks for
    assert questions[1].span == tuple(DOCUMENT["labels"][2]["span"])
    assert source.skipped == {"document without text": 1, "mention not found in the text": 1}
    assert questions[3].source == "aida-conll-dev.benchmark.jsonl 6, mention 5"
    assert list(source) == questions
    assert source.skipped.total() == 2


def titles(question):
    return sorted(candidate.title for candidate in question.candidates)


def test_aida_candidates_are_told_apart_by_their_address(aida):
    first, second, *_ = AidaTesta(aida)
    assert titles(first) == ["Gene Simmons", "Phil Simmons", "Simmons (band)"]
    assert {candidate.title: candidate.prior for candidate in first.candidates}["Simmons (band)"] == 20
    assert titles(second) == ["Café London", "London (Ontario)", "London (punk band)"]


def test_order_of_candidates_tells_nothing(aida):
    pages = ["Kent", *(f"Kent_({n})" for n in range(9))]
    text = "Kent . " * 200
    labels = [label(text, "Kent", occurrence=n) for n in range(200)]
    write_lines(aida / "aida-conll-dev.benchmark.jsonl", {"id": 0, "text": text, "labels": labels})
    seen = []
    for order in (pages, pages[::-1]):
        record = {"doc_id": 1, "mentions": [mention("Kent", "Kent", *order)] * 200}
        write_lines(aida / "aida_testa_candidates.jsonl", record)
        seen.append([[c.title for c in question.candidates] for question in AidaTesta(aida)])
    assert seen[0] == seen[1]
    places = Counter(given.index("Kent") for given in seen[0])
    assert set(places) == set(range(10))
    assert max(places.values()) < 40


def test_limit_and_context(aida):
    (question,) = AidaTesta(aida, context_characters=20, limit=1)
    assert question.text == "Simmons of London"
    assert question.mention == "Simmons"


def best_alignment(mentions, surfaces):
    """The most pairs that keep the order, tried one by one."""
    if not mentions or not surfaces:
        return 0
    rest = max(best_alignment(mentions[1:], surfaces), best_alignment(mentions, surfaces[1:]))
    return max(rest, (mentions[0] == surfaces[0]) + best_alignment(mentions[1:], surfaces[1:]))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from("xyz"), max_size=6), st.lists(st.sampled_from("xyz"), max_size=6))
def test_alignment_is_the_longest_in_order(mentions, surfaces):
    found = align(mentions, surfaces, [[False] * len(surfaces)] * len(mentions))
    pairs = [(m, s) for m, s in enumerate(found) if s is not None]
    assert len(found) == len(mentions)
    assert all(mentions[m] == surfaces[s] for m, s in pairs)
    assert [s for _, s in pairs] == sorted({s for _, s in pairs})
    assert len(pairs) == best_alignment(mentions, surfaces)


def test_alignment_reads_masks_and_parts():
    nothing = [[False] * 3] * 2
    assert align(["Lord's", "Tony Adams"], ["L*** 's", "****", "Adams"], nothing) == [0, 2]
    assert align(["Kent"], ["K***t", "K**t", "Essex"], nothing[:1]) == [1]


@given(st.text("ab \n", min_size=1, max_size=60), st.data(), st.integers(1, 40))
def test_window_holds_the_mention_and_whole_words(text, data, characters):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    window, (left, right) = context_window(text, (start, end), characters)
    assert window[left:right] == text[start:end]
    assert len(window) <= max(characters, end - start)
    at = start - left
    assert text[at : at + len(window)] == window
    if left:
        assert at == 0 or text[at - 1].isspace()
    if right < len(window):
        assert at + len(window) == len(text) or text[at + len(window)].isspace()


def test_window_gives_to_one_side_what_the_other_does_not_need():
    text = "one two three four five six"
    assert context_window(text, (0, 3), 13) == ("one two three", (0, 3))
    assert context_window(text, (24, 27), 13) == ("four five six", (10, 13))
    assert context_window(text, (8, 13), 14) == ("two three four", (4, 9))
    assert context_window(text, (8, 13), 1) == ("three", (0, 5))


SENTENCE = "Steve and David met Nobody , Ghost and Paris ."


def case(surface, *candidates):
    listed = [{"entity_id": entity, "name": name} for entity, name in candidates]
    return {"span": label(SENTENCE, surface)["span"], "text": surface, "candidates": listed}


@pytest.fixture(params=[(Kore50, "kore50"), (Rss500, "rss-500")])
def cases(request, tmp_path):
    kind, stem = request.param
    labels = [
        label(SENTENCE, "Steve", "Q3", "Steve Smith"),
        label(SENTENCE, "David", "Q9", "David Smith"),
        label(SENTENCE, "Nobody", "<NIL>", "Unknown"),
        label(SENTENCE, "Ghost", "<NO_MAPPING>", "Unknown"),
        label(SENTENCE, "Paris", "Q90", "Paris"),
    ]
    listed = [
        case("and", ("Q5", "AND")),
        case("Steve", ("Q1", "Steve Smith"), ("Q2", "Steve Jobs"), ("Q3", "Steve Smith")),
        case("David", ("Q8", "David Smith")),
        case("Nobody", ("Q7", "Nobody")),
        case("Ghost"),
    ]
    write_lines(tmp_path / f"{stem}.benchmark.jsonl", {"text": SENTENCE, "labels": labels})
    write_lines(tmp_path / f"refined.{stem}.eval_cases.jsonl", listed)
    return kind, tmp_path, stem


def test_candidate_cases(cases):
    kind, folder, stem = cases
    source = kind(folder)
    steve, david, nobody = source
    assert source.skipped == Counter({"gold entity <NO_MAPPING>": 1, "mention without a candidate list": 1})
    assert titles(steve) == ["Steve Jobs", "Steve Smith (Q1)", "Steve Smith (Q3)"]
    assert steve.gold == "Steve Smith (Q3)"
    # the gold is no candidate, but shares a candidate's name
    assert titles(david) == ["David Smith"]
    assert david.gold == "David Smith (Q9)"
    assert (nobody.mention, nobody.gold, titles(nobody)) == ("Nobody", "", ["Nobody"])
    assert nobody.source == f"{stem}.benchmark.jsonl:1, mention 3"


def change(record, path, value):
    *parents, key = path
    for parent in parents:
        record = record[parent]
    if value is None:
        del record[key]
    else:
        record[key] = value


@pytest.mark.parametrize(
    ("file", "path", "value", "complaint"),
    [
        ("benchmark", ["text"], None, r"kore50.benchmark.jsonl:1: no 'text' here, only 'labels'"),
        ("benchmark", ["labels"], "many", r"benchmark.jsonl:1: 'labels' is str \"many\", wanted list"),
        (
            "benchmark",
            ["labels", 0, "span"],
            [3, 900],
            r"benchmark.jsonl:1: span \[3, 900\] is no part of a text of 46",
        ),
        ("benchmark", ["labels", 0, "span"], ["3", 9], r"benchmark.jsonl:1: span \['3', 9\] is no part"),
        ("eval_cases", [1, "text"], "Stefan", r"eval_cases.jsonl:1: 'Stefan' is said to stand at \[0, 5\].*'Steve'"),
        ("eval_cases", [1, "candidates", 0, "name"], 5, r"eval_cases.jsonl:1: 'name' is int 5, wanted str"),
        ("eval_cases", [0], "case", r"eval_cases.jsonl:1: wanted a JSON object with span, text, candidates, got str"),
    ],
)
@pytest.mark.parametrize("cases", [(Kore50, "kore50")], indirect=True)
def test_broken_cases_name_file_and_line(cases, file, path, value, complaint):
    _, folder, _ = cases
    (broken,) = folder.glob(f"*{file}*")
    record = json.loads(broken.read_text())
    change(record, path, value)
    write_lines(broken, record)
    with pytest.raises(DataError, match=complaint):
        list(Kore50(folder))


@pytest.mark.parametrize("cases", [(Kore50, "kore50")], indirect=True)
def test_files_of_different_length_or_shape(cases):
    _, folder, _ = cases
    lists = folder / "refined.kore50.eval_cases.jsonl"
    lists.write_text(lists.read_text() + "[]\n")
    with pytest.raises(DataError, match=r"eval_cases.jsonl:2: the other file ends before this line"):
        list(Kore50(folder))
    write_lines(lists, {"span": [0, 5]})
    with pytest.raises(DataError, match=r"eval_cases.jsonl:1: wanted a list of cases, got dict"):
        list(Kore50(folder))


@pytest.mark.parametrize("url", ["London", "http://en.wikipedia.org/wiki/"])
def test_an_address_of_no_article(aida, url):
    broken = mention("London", "London", "London") | {"gold_url": url}
    write_lines(aida / "aida_testa_candidates.jsonl", {"doc_id": 7, "mentions": [broken]})
    with pytest.raises(DataError, match=r"aida_testa_candidates.jsonl:1: .* no address of a Wikipedia article"):
        list(AidaTesta(aida))


def test_broken_lines(aida):
    file = aida / "aida_testa_candidates.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\n" + whole[:50])
    with pytest.raises(DataError, match=r"candidates.jsonl:4: not JSON"):
        list(AidaTesta(aida))
    file.write_bytes(whole + b'{"doc_id": "\xff"}')
    with pytest.raises(DataError, match=r"candidates.jsonl:3: not UTF-8"):
        list(AidaTesta(aida))


@pytest.mark.parametrize("option", [{"context_characters": 0}, {"limit": 0}])
def test_options_out_of_range(aida, option):
    with pytest.raises(DataError, match=next(iter(option))):
        AidaTesta(aida, **option)


def test_missing_file_names_path_and_option(tmp_path):
    with pytest.raises(DataError, match=r"no file .*kore50.benchmark.jsonl: check 'folder'"):
        Kore50(tmp_path)


# benchmark: mentions, linked, gold among the candidates, skipped
REAL = [
    (AidaTesta, 5191, 4791, 4791, {}),
    (Kore50, 143, 143, 116, {"gold entity <NO_MAPPING>": 1}),
    (Rss500, 994, 518, 409, {"gold entity <NO_MAPPING>": 6}),
]


@pytest.mark.skipif("KEDIT_DATA" not in os.environ, reason="KEDIT_DATA is not set: the real benchmark files are needed")
@pytest.mark.parametrize(("kind", "mentions", "linked", "reachable", "skipped"), REAL)
def test_real_files(kind, mentions, linked, reachable, skipped):
    source = kind(Path(os.environ["KEDIT_DATA"]) / "ed")
    questions = list(source)
    given = [titles(question) for question in questions]
    assert len(questions) == mentions
    assert source.skipped == skipped
    assert sum(bool(question.gold) for question in questions) == linked
    assert sum(question.gold in listed for question, listed in zip(questions, given, strict=True)) == reachable
    assert all(len(listed) == len(set(listed)) for listed in given)
    assert all("*" not in question.mention and len(question.text) <= 600 for question in questions)
