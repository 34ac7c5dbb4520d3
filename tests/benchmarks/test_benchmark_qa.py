import json
import os
from pathlib import Path

import pytest

from kedit.benchmarks import NaturalQuestions, WebQuestions
from kedit.editing.sources import DataError, Question


@pytest.fixture
def natural(tmp_path):
    records = [
        {"question": "who wrote it", "answer": ["Ann", "Ann Bó"], "more": 1},
        {"question": "when", "answer": [" "]},
        {"question": " ", "answer": ["x"]},
        {"question": "where", "answer": ["", "Rome"]},
    ]
    file = tmp_path / "nq.jsonl"
    file.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return file


@pytest.fixture
def web(tmp_path):
    file = tmp_path / "web.json"
    file.write_text(json.dumps([{"qId": f"w{n}", "qText": f"q{n}?", "answers": [f"a{n}"]} for n in range(4)], indent=1))
    return file


def test_natural_questions(natural):
    source = NaturalQuestions(str(natural))
    wanted = [Question("who wrote it", ["Ann", "Ann Bó"], "nq.jsonl:1"), Question("where", ["Rome"], "nq.jsonl:7")]
    assert list(source) == wanted
    assert list(source) == wanted
    assert source.skipped == {"no answer": 1, "no question": 1}


def test_web_questions(web):
    assert list(WebQuestions(web))[2] == Question("q2?", ["a2"], "web.json, entry 3")


def test_limit_counts_questions_and_not_lines(natural, web):
    assert [question.question for question in NaturalQuestions(natural, limit=2)] == ["who wrote it", "where"]
    assert [question.question for question in WebQuestions(web, limit=3)] == ["q0?", "q1?", "q2?"]


@pytest.mark.parametrize(
    ("kind", "content", "complaint"),
    [
        (NaturalQuestions, '{"question": "a", "answer": ["b"]}\n{"question"', r"broken:2: not JSON"),
        (NaturalQuestions, '{"question": "a"}', r"broken:1: no 'answer' here, only 'question'"),
        (NaturalQuestions, "{}", r"broken:1: no 'question' here, only an empty object"),
        (NaturalQuestions, '{"question": "a", "answer": "b"}', r"broken:1: 'answer' is str \"b\", wanted list"),
        (NaturalQuestions, '{"question": "a", "answer": [1]}', r"broken:1: 'answer' holds int 1, wanted only strings"),
        (WebQuestions, '[\n{"qText": "a", "answers": [}', r"broken:2: not JSON"),
        (WebQuestions, '{"qText": "a"}', r"broken: wanted one JSON list of records, got dict"),
        (WebQuestions, '[{"qText": 3, "answers": []}]', r"broken, entry 1: 'qText' is int 3, wanted str"),
        (WebQuestions, "[[]]", r"broken, entry 1: wanted a JSON object with qText, answers, got list"),
    ],
)
def test_broken_files_name_file_and_place(tmp_path, kind, content, complaint):
    file = tmp_path / "broken"
    file.write_text(content)
    with pytest.raises(DataError, match=complaint):
        list(kind(file))


def test_bad_options(natural, tmp_path):
    with pytest.raises(DataError, match="limit is 0"):
        NaturalQuestions(natural, limit=0)
    with pytest.raises(DataError, match=r"no file .*nowhere.json: check 'file'"):
        WebQuestions(tmp_path / "nowhere.json")


REAL = [
    (NaturalQuestions, "nq_open/NQ-open.dev.jsonl", 3610),
    (NaturalQuestions, "nq_open/NQ-open.efficientqa.dev.1.1.jsonl", 1800),
    (WebQuestions, "webquestions/test.json", 2032),
    (WebQuestions, "webquestions/val.json", 755),
]


@pytest.mark.skipif("KEDIT_DATA" not in os.environ, reason="KEDIT_DATA is not set: the real benchmark files are needed")
@pytest.mark.parametrize(("kind", "file", "count"), REAL)
def test_real_files(kind, file, count):
    source = kind(Path(os.environ["KEDIT_DATA"]) / "qa" / file)
    questions = list(source)
    assert len(questions) == count
    assert not source.skipped
    assert all(question.question and question.answers for question in questions)
