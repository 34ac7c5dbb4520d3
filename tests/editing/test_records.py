"""JSON that Python's reader would take, or break on, and no file of records should hold."""

import pytest

from kedit.editing.records import fields, read_json_lines, read_json_list
from kedit.editing.sources import DataError

DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.fixture
def file(tmp_path):
    return lambda text: [path := tmp_path / "records.json", path.write_text(text)][0]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ('{"target": "Quito", "prompt": "a", "target": "Lima"}', "'target' stands twice in one object: keep one"),
        ('{"a": {"b": 1, "b": 1}}', "'b' stands twice"),
        ('{"a": ' + "1" * 5000 + "}", r"Exceeds the limit \(4300 digits\)"),
        (DEEP, "values stand in one another too deep to be read"),
    ],
)
def test_an_object_that_cannot_be_read_is_named_with_its_line(file, entry, complaint):
    with pytest.raises(DataError, match=rf"records\.json:2: {complaint}"):
        list(read_json_lines(file('{"a": [{}, {}]}\n' + entry)))
    with pytest.raises(DataError, match=rf"records\.json:4: {complaint}"):
        list(read_json_list(file('[\n{"a": "x, [\\n"},\n\n ' + entry + ',\n{"b": 2}\n]')))
    with pytest.raises(DataError, match=rf"records\.json:2: {complaint}"):
        list(read_json_list(file("\n" + entry)))


def test_the_same_key_in_different_objects_is_well(file):
    assert [one for _, one in read_json_list(file('[{"a": {"a": 1}}, {"a": 2}]'))] == [{"a": {"a": 1}}, {"a": 2}]


@pytest.mark.parametrize("depth", [500, 800, 900, 950, 980, 990, 1000, 5000])
def test_what_is_nested_as_deep_as_can_be_read_does_not_break_a_complaint(file, depth):
    def read(path):
        return [fields(record, where, prompt=str) for where, record in read_json_lines(path)]

    with pytest.raises(DataError, match=r"wanted a JSON object with prompt|too deep"):
        read(file("[" * depth + "]" * depth))
