import json

import pytest

from kedit.editing.edit_file import EditFile, read_edits, write_edits
from kedit.editing.edits import Edit, check_edits, probe
from kedit.editing.plain_text import LONGEST
from kedit.editing.sources import DataError


def edit(id="1", prompt="The capital of Peru is", target="Quito", *probes, **more):
    return Edit(id, prompt, target, probes=tuple(probes), **more)


def written(folder, *records):
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_an_edit_asks_its_own_prompt_and_its_probes_by_aspect():
    near = probe("1", "locality/near", "The capital of Chile is ", " Santiago")
    one = edit("1", "The capital of Peru is ", " Quito", near)
    assert one.text == "The capital of Peru is Quito"
    assert (one.own.prompt, one.own.left, one.own.span) == (
        "The capital of Peru is",
        "The capital of Peru is ",
        "Quito",
    )
    assert one.asked("reliability") == [one.own]
    assert (one.asked("locality"), one.asked("generality")) == ([near], [])


def test_conflicts_and_their_ceilings():
    edits = [
        edit("1"),
        edit("2", "the  Capital of peru is", "Lima"),  # the same prompt but for case and spaces
        edit("3", target="QUITO"),
        edit("4", "The capital of Chile is", "Quito", probe("4", "locality/near", "The capital of Peru is", "Lima")),
        edit("5", "The capital of Cuba is", "Rome", probe("5", "locality/near", "The capital of Spain is", "Madrid")),
    ]
    found = check_edits(edits)
    assert found.conflicts == (("1", "2", "3"),)
    assert found.duplicates == ("3",)
    assert found.reliability_ceiling == pytest.approx(4 / 5)  # "Quito" satisfies two of three
    assert found.overlapping == ("4-locality/near-0",)
    assert found.locality_ceiling == 0.5
    assert "1 prompts have several targets (3 edits): reliability cannot exceed 0.8000" in str(found)


def test_edits_without_conflicts():
    found = check_edits([edit(), edit("2", "The capital of Cuba is")])
    assert (found.conflicts, found.duplicates, found.overlapping) == ((), (), ())
    assert (found.reliability_ceiling, found.locality_ceiling) == (1, 1)
    assert str(found) == "2 edits, none of which contradicts another"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (edit(prompt=" "), r"edit '1': 'prompt' is empty"),
        (edit(target="\n", where="a.jsonl:7"), r"a.jsonl:7: 'target' is empty"),
        (edit(target="x" * (LONGEST + 1)), r"'target' has 20,001 characters, wanted 20,000 at most"),
        (edit(prompt="a\u202eb"), r"'prompt' holds the character U\+202E at place 2"),
        (edit(target="a\x00"), r"'target' holds the character U\+0000 at place 2"),
        (edit(subject="\x1b[31m"), r"'subject' holds the character U\+001B"),
        (edit("1", "a", "b", probe("1", "reliability", "a", "b")), r"probe 1: 'group' is 'reliability', wanted gen"),
        (edit("1", "a", "b", probe("1", "generality", "a", "")), r"edit '1', probe 1: 'target' is empty"),
        (edit("1", "a", "b", probe("1", "locality", " ", "")), r"edit '1', probe 1: 'prompt' is empty"),
    ],
)
def test_what_no_edit_can_be_is_refused(given, complaint):
    with pytest.raises(DataError, match=complaint):
        check_edits([given])


def test_what_only_looks_odd_is_an_edit():
    check_edits([edit(prompt="Line one.\nAnd\ttwo, नेपाल \u200d\u200e is", target="N"),
                 edit("2", "x", "y", probe("2", "locality", "z", ""))])  # fmt: skip


def test_an_id_that_came_before_is_refused():
    with pytest.raises(DataError, match=r"b:2: the id '1' came before at edit '1'"):
        check_edits([edit(), edit(prompt="other", where="b:2")])


def test_edits_survive_a_file(tmp_path):
    probes = (
        probe("x", "generality", "Peru's capital:", "Quito", 0, ["San Francisco de Quito"]),
        probe("x", "generality", "Of Peru the capital is", "Quito", 1),
        probe("x", "locality/far", "Zwölf plus eins ist", ""),
    )
    given = [edit("x", "The capital of Peru is", "Quito", *probes, subject="Peru", relation="capital"), edit("y")]
    write_edits(tmp_path / "deep" / "edits.jsonl", given)
    read = EditFile(tmp_path / "deep" / "edits.jsonl").load()

    def plain(edits):
        return [(e.id, e.prompt, e.target, e.subject, e.relation,
                 [(p.id, p.left, p.span, p.answers) for p in e.probes]) for e in edits]  # fmt: skip

    assert plain(read) == plain(given)
    assert read[0].where.endswith("edits.jsonl:1")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["edits.jsonl"]


def test_prompt_and_target_are_enough_and_lines_give_ids(tmp_path):
    file = written(tmp_path, *({"prompt": f"p{n} ", "target": f" t{n}", "created": "2026-11-22"} for n in range(6)))
    assert [(one.id, one.prompt, one.target) for one in read_edits(file)][1] == ("2", "p1", "t1")
    assert [one.id for one in EditFile(file, limit=2).load()] == ["1", "2"]
    drawn = [one.id for one in EditFile(file, limit=4, seed=3).load()]
    assert drawn == [one.id for one in EditFile(str(file), limit=4, seed=3).load()]
    assert drawn != ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"prompt": "a"}, r"jsonl:1: no 'target' here, only 'prompt'"),
        ({"prompt": "a", "target": 3}, r"jsonl:1: 'target' is int 3, wanted str"),
        ({"prompt": "a", "target": ""}, r"jsonl:1: 'target' is empty"),
        ({"prompt": "a", "target": "b", "subjct": "c"}, r"jsonl:1: there is no field 'subjct': did you mean 'subject'"),
        ({"prompt": "a", "target": "b", "zz": "c"}, r"there is no field 'zz', wanted only 'id', 'prompt'"),
        ({"prompt": "a", "target": "b", "probes": [{"group": "x"}]}, r"jsonl:1, probe 1: no 'prompt' here"),
        (
            {"prompt": "a", "target": "b", "probes": [{"group": "generality", "prompt": "c", "answers": [1]}]},
            r"jsonl:1, probe 1: 'answers' holds int 1",
        ),
        (["a"], r"jsonl:1: wanted a JSON object with prompt, target"),
    ],
)
def test_broken_lines_are_named(tmp_path, record, complaint):
    with pytest.raises(DataError, match=complaint):
        read_edits(written(tmp_path, record))


def test_definitions_beside_edits_are_of_subjects_all_of_whose_edits_are_given(tmp_path):
    lines = [{"prompt": f"{name} {verb}", "target": "x", "subject": name} for name in "AB" for verb in ("is", "has")]
    file = written(tmp_path, *lines, {"prompt": "Nobody is", "target": "x"})
    told = tmp_path / "facts.jsonl"
    records = [{"id": f"f-{name}", "name": name, "definition": f"{name} is x and has x."} for name in "AC"]
    told.write_text("\n".join(map(json.dumps, records)))
    source = EditFile(file, definitions=told)
    edits = source.load()
    assert [fact.definition for fact in source.define(edits)] == ["A is x and has x."]
    assert source.define(edits[1:]) == []
    assert source.undefined() == ["B"]
    assert EditFile(file).define(edits) == EditFile(file).undefined() == []
    told.write_text(json.dumps(records[1]))
    with pytest.raises(DataError, match=r"facts.jsonl: no edit of .*edits.jsonl has 'C' or another"):
        source.undefined()
    with pytest.raises(DataError, match="check 'definitions'"):
        EditFile(file, definitions="")


def test_bad_options(tmp_path):
    with pytest.raises(DataError, match=r"edits.jsonl: 0 edits in this file"):
        read_edits(written(tmp_path))
    with pytest.raises(DataError, match="limit is 0"):
        EditFile(written(tmp_path), limit=0)
    with pytest.raises(DataError, match="no file"):
        EditFile(tmp_path / "none.jsonl")
