import csv
import json
from collections import Counter

import pyarrow as pa
import pytest
from pyarrow import parquet

import kedit.benchmarks.tables as tables
from kedit.benchmarks import CounterFact, KnowEdit, RippleEdits, Sentences, Zsre
from kedit.benchmarks.tables import find_table, read_table
from kedit.editing.edits import check_edits
from kedit.editing.sources import DataError, Question


def flat(case=7, **more):
    return {
        "case_id": case,
        "prompt": "The mother tongue of Ana is",
        "target_new": "Thai",
        "subject": "Ana",
        "ground_truth": "French",
        "rephrase_prompt": "It rained.\nAna speaks ",
        "locality_prompt": "The mother tongue of Bo is",
        "locality_ground_truth": "French",
        **more,
    }


def nested(**more):
    return {
        "case_id": 3,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "subject": "Ana",
            "target_new": {"str": "Thai", "id": "Q1"},
            "target_true": {"str": "French", "id": "Q2"},
            "relation_id": "P103",
        },
        "paraphrase_prompts": ["Ana speaks", "Ana's language is"],
        "neighborhood_prompts": ["The mother tongue of Bo is"],
        "attribute_prompts": ["The mother tongue of Chai is"],
        "generation_prompts": ["Ana grew up in"],
        **more,
    }


def know(**more):
    return {
        "subject": "Loki",
        "prompt": "The name of the spouse of Loki is",
        "target_new": "Sylvie",
        "ground_truth": "Sigyn",
        "portability": {
            "Reasoning": [
                {"prompt": "The gender of the spouse of Loki is", "ground_truth": [["female", "woman"], ["f"]]}
            ],
            "Subject_Aliasing": [{"prompt": "The name of the spouse of Loptr is", "ground_truth": "Sylvie"}],
        },
        "locality": {"Forgetfulness": [{"prompt": "Loki's child is", "ground_truth": ["Vali", "Narfi"]}]},
        **more,
    }


def raw_ripple(**more):
    def test(prompt, *answers):
        listed = [{"value": value, "aliases": aliases} for value, aliases in answers]
        return {
            "test_queries": [{"prompt": prompt, "answers": listed, "query_type": "regular"}],
            "test_condition": "OR",
            "condition_queries": [],
        }

    return {
        "example_type": "popular",
        "edit": {
            "prompt": "The name of the country which Loki is associated with is Life is Here.",
            "subject_id": "Q1",
            "relation": "COUNTRY",
            "target_id": "Q2",
            "original_fact": {"prompt": "The name of the country which Loki is associated with is Norway."},
        },
        "Relation_Specificity": [test("The gender of Loki is", ("male", []))],
        "Logical_Generalization": [],
        "Subject_Aliasing": [test("Loptr is associated with", ("Norway", ["Norge"]), ("Asgard", []))],
        "Compositionality_I": [test("nobody knows")],
        "Compositionality_II": [],
        "Forgetfulness": [],
        **more,
    }


def written(folder, *records, name="rows.json", lines=False):
    path = folder / name
    given = "\n".join(json.dumps(one) for one in records) if lines else json.dumps(list(records), ensure_ascii=False)
    path.write_text(given, encoding="utf-8")
    return path


def asked(edit):
    return [(one.group, one.prompt, one.span, one.answers) for one in edit.probes]


def test_counterfact_flat(tmp_path):
    (edit,) = CounterFact(written(tmp_path, flat())).load()
    assert (edit.id, edit.prompt, edit.target, edit.subject) == ("7", "The mother tongue of Ana is", "Thai", "Ana")
    assert edit.where.endswith("rows.json, entry 1")
    assert asked(edit) == [
        ("generality/rephrase", "It rained.\nAna speaks", "Thai", ()),
        ("locality/neighbourhood", "The mother tongue of Bo is", "French", ()),
    ]


def test_counterfact_nested(tmp_path):
    (edit,) = CounterFact(written(tmp_path, nested())).load()
    assert (edit.id, edit.prompt, edit.target) == ("3", "The mother tongue of Ana is", "Thai")
    assert (edit.subject, edit.relation) == ("Ana", "P103")
    assert asked(edit) == [
        ("generality/rephrase", "Ana speaks", "Thai", ()),
        ("generality/rephrase", "Ana's language is", "Thai", ()),
        ("locality/neighbourhood", "The mother tongue of Bo is", "French", ()),
        ("locality/attribute", "The mother tongue of Chai is", "Thai", ()),
    ]
    assert len({one.id for one in edit.probes}) == 4


def test_zsre_of_mend(tmp_path):
    record = {
        "src": "What university did Ana attend?", "pred": "Oslo", "alt": "Yale", "answers": ["Oslo"], "subject": "Ana",
        "rephrase": "Where did Ana study?", "loc": "nq question: who sang it", "loc_ans": "Bo", "cond": "",
    }  # fmt: skip
    (edit,) = Zsre(written(tmp_path, record)).load()
    assert (edit.id, edit.prompt, edit.target) == ("1", "What university did Ana attend?", "Yale")
    assert asked(edit) == [
        ("generality/rephrase", "Where did Ana study?", "Yale", ()),
        ("locality/questions", "who sang it", "Bo", ()),
    ]


def test_zsre_of_knowedit(tmp_path):
    (edit,) = Zsre(written(tmp_path, know(rephrase_prompt="Loki is married to"))).load()
    assert [group for group, *_ in asked(edit)] == [
        "generality/rephrase", "portability/reasoning", "portability/subject_aliasing", "locality/forgetfulness",
    ]  # fmt: skip


def test_knowedit(tmp_path):
    file = written(tmp_path, know(), know(portability={}, locality={}))
    edit, bare = KnowEdit(file).load()
    assert asked(edit) == [
        ("portability/reasoning", "The gender of the spouse of Loki is", "female", ("woman", "f")),
        ("portability/subject_aliasing", "The name of the spouse of Loptr is", "Sylvie", ()),
        ("locality/forgetfulness", "Loki's child is", "Vali", ("Narfi",)),
    ]
    assert (bare.id, bare.probes) == ("2", ())
    groups = [group for group, *_ in asked(KnowEdit(file, generality=["Subject_Aliasing"]).load()[0])]
    assert groups[:2] == ["portability/reasoning", "generality/subject_aliasing"]


def test_wikibio(tmp_path):
    kept = {"Relation_Specificity": [{"prompt": "Born in", "ground_truth": ["Rome"]}]}
    (edit,) = KnowEdit(
        written(tmp_path, {"concept": "ana", "text": "This is about ana. ", "labels": "She sang.", "locality": kept})
    ).load()
    assert (edit.prompt, edit.target, edit.subject) == ("This is about ana.", "She sang.", "ana")
    assert asked(edit) == [("locality/relation_specificity", "Born in", "Rome", ())]


def test_ripple_edits_of_its_authors(tmp_path):
    plain = {"prompt": "Loki is followed by Thor.", "relation": "FOLLOWED_BY"}
    source = RippleEdits(written(tmp_path, raw_ripple(), raw_ripple(edit=plain)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", told := Told())
        edit, other = source.load()
    # the target holds an "is" of its own
    assert (edit.prompt, edit.target) == ("The name of the country which Loki is associated with is", "Life is Here")
    assert (other.prompt, other.target, other.relation) == ("Loki is followed by", "Thor", "FOLLOWED_BY")
    assert asked(edit) == [
        ("generality/subject_aliasing", "Loptr is associated with", "Norway", ("Norge", "Asgard")),
        ("locality/relation_specificity", "The gender of Loki is", "male", ()),
    ]
    assert source.skipped == {"probes without a prompt or an answer": 2}
    assert "left out 2 probes without a prompt or an answer" in told.text


class Told:
    """Takes what is printed."""

    text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_ripple_edits_flat(tmp_path):
    record = {
        "example_type": "recent", "subject": "Leo", "prompt": "The place of death of Leo is", "target_new": "Berlin",
        "Logical_Generalization": [{"prompt": "Is Leo still alive?", "targets": ["", "no"]}],
        "Relation_Specificity": [{"prompt": "Leo was born in", "targets": ["Rome", "Roma"]}],
    }  # fmt: skip
    (edit,) = RippleEdits(written(tmp_path, record)).load()
    assert asked(edit) == [
        ("generality/logical_generalization", "Is Leo still alive?", "no", ()),
        ("locality/relation_specificity", "Leo was born in", "Rome", ("Roma",)),
    ]


def test_every_format_gives_the_same_edits(tmp_path):
    rows = [flat(n, target_new=target) for n, target in enumerate(("NA", "null", "None", "Thai, or not"))]
    (tmp_path / "x").mkdir()
    files = [written(tmp_path, *rows), written(tmp_path / "x", *rows, lines=True),
             written(tmp_path, *rows, name="r.jsonl", lines=True)]  # fmt: skip
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"rows{suffix}").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        files.append(tmp_path / f"rows{suffix}")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    files.append(tmp_path / "rows.parquet")
    read = [[(edit.id, edit.text, asked(edit)) for edit in CounterFact(file).load()] for file in files]
    assert all(one == read[0] for one in read)
    assert [text.removeprefix("The mother tongue of Ana is ") for _, text, _ in read[0]] == [
        "NA", "null", "None", "Thai, or not",
    ]  # fmt: skip


def test_parquet_leaves_out_what_a_record_does_not_have(tmp_path):
    parquet.write_table(pa.Table.from_pylist([know(), know(locality={})]), tmp_path / "rows.parquet")
    with_probes, without = KnowEdit(tmp_path / "rows.parquet").load()
    assert (len(with_probes.probes), len(without.probes)) == (3, 2)


def test_limit_and_seed(tmp_path):
    file = written(tmp_path, *(flat(n, prompt=f"p{n}") for n in range(9)))
    assert [edit.id for edit in CounterFact(file, limit=3).load()] == ["0", "1", "2"]
    assert [edit.id for edit in CounterFact(file, seed=1).load()] != list("012345678")
    drawn = [[edit.id for edit in CounterFact(file, limit=4, seed=seed).load()] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 4
    with pytest.raises(DataError, match="limit is 0"):
        CounterFact(file, limit=0)


def test_rows_that_say_nothing_are_counted(tmp_path, capsys):
    source = CounterFact(written(tmp_path, flat(1, prompt=" "), flat(2, target_new=""), flat(3, locality_prompt="")))
    (edit,) = source.load()
    assert len(edit.probes) == 1
    assert source.skipped == {
        "rows whose prompt is empty": 1,
        "rows whose target is empty": 1,
        # that of a generality probe has the edit's target
        "probes without a prompt or an answer": 2,
    }
    assert "rows.json: left out 1 rows whose target is empty" in capsys.readouterr().err
    with pytest.raises(DataError, match="0 edits in this table"):
        CounterFact(written(tmp_path, flat(2, target_new=""))).load()


@pytest.mark.parametrize(
    ("kind", "record", "complaint"),
    [
        (CounterFact, flat(target_new=3), r"rows.json, entry 1: 'target_new' is int 3, wanted str"),
        (CounterFact, {"prompt": "a"}, r"entry 1: no 'target_new' here, only 'prompt'"),
        (CounterFact, flat(prompt="a\u202e"), r"entry 1: 'prompt' holds the character U\+202E"),
        (CounterFact, nested(paraphrase_prompts=[1]), r"entry 1: 'paraphrase_prompts' holds int 1"),
        (CounterFact, nested(requested_rewrite={"prompt": "x"}), r"entry 1, requested_rewrite: no 'subject' here"),
        (
            CounterFact,
            nested(requested_rewrite={**nested()["requested_rewrite"], "prompt": "Ana is"}),
            r"'prompt' is 'Ana is', wanted one {} in it",
        ),
        (Zsre, know(), r"entry 1: no 'rephrase_prompt' here"),
        (Zsre, {"src": "a", "alt": "b", "subject": "c", "rephrase": "d", "loc": "e"}, r"no 'loc_ans' here"),
        (KnowEdit, know(locality={"Near": []}), r"there is no kind of probe 'Near', wanted one of Relation_Spec"),
        (KnowEdit, know(locality={"Forgetfulness": [{"prompt": "a"}]}), r"Forgetfulness 1: no 'ground_truth' here"),
        (KnowEdit, know(portability={"Reasoning": {}}), r"entry 1: 'Reasoning' is dict {}, wanted list"),
        (
            KnowEdit,
            know(portability={"Reasoning": [{"prompt": "a", "ground_truth": [[3]]}]}),
            r"Reasoning 1: 'ground_truth' holds int 3",
        ),
        (
            RippleEdits,
            raw_ripple(edit={"prompt": "Loki, Thor.", "relation": "X"}),
            r"wanted a sentence '... is TARGET.'",
        ),
        (RippleEdits, raw_ripple(Forgetfulness=[3]), r"Forgetfulness 1: wanted a JSON object with prompt, got int 3"),
    ],
)
def test_wrong_schemas_name_file_row_and_field(tmp_path, kind, record, complaint):
    with pytest.raises(DataError, match=complaint):
        kind(written(tmp_path, record)).load()


def test_unknown_kinds_of_generality(tmp_path):
    with pytest.raises(DataError, match="generality holds 'Aliases', wanted kinds of Reasoning"):
        KnowEdit(written(tmp_path, know()), generality=["Aliases"])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b"prompt,target_new\na,b\nc\n", r"a.csv:3: 1 fields, and the header has 2"),
        ("a.csv", b"prompt,target_new\na,b,c\n", r"a.csv:2: 3 fields, and the header has 2"),
        ("a.csv", b"a,a\n1,2\n", r"a.csv:1: a column comes twice"),
        ("a.csv", b'a,b\n"open,2\n', r"a.csv:2: no CSV: unexpected end of data"),
        ("a.csv", b"a,b\nx,caf\xe9\n", r"a.csv:2: not UTF-8 text"),
        ("a.json", b'[{"a": 1}', r"a.json:1: not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', r"a.jsonl:2: not JSON"),
        ("a.parquet", b"PAR1 and no more", r"a.parquet: cannot be read behind row 0"),
    ],
)
def test_broken_tables_name_file_and_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        list(read_table(find_table(tmp_path / name)))


def test_what_is_no_table(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for file, complaint in [
        (tmp_path / "a.txt", "unknown format '.txt', wanted one of .json"),
        (tmp_path, "is a folder"),
        ("data/rows.json", "no file data/rows.json: check 'file'"),
        ("nowhere", "no file nowhere"),
    ]:
        with pytest.raises(DataError, match=complaint):
            CounterFact(file)


def test_data_sets_of_the_hub(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    def load(name, split, streaming):
        assert (name, streaming) == ("someone/facts", True)
        if split != "test":
            raise ValueError(f"Bad split: {split}\nand more")
        return iter([flat(1, note=None), flat(2)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    edits = CounterFact("someone/facts", split="test").load()
    assert [edit.where for edit in edits] == ["someone/facts [test], row 1", "someone/facts [test], row 2"]
    with pytest.raises(DataError, match=r"no file someone/facts, and no data set .* \(ValueError: Bad split: train\)"):
        CounterFact("someone/facts").load()

    local = written(tmp_path, know())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, repo_type: {("a/b", "c/d.json"): local}[args])
    assert len(KnowEdit("a/b:c/d.json").load()) == 1
    with pytest.raises(DataError, match=r"no data set of this name can be had from the hub \(KeyError"):
        KnowEdit("a/b:c/e.json").load()


def test_sentences(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(
        ' = A Title = \n\n It is a well @-@ known ( short ) text , isn \'t it ? It has , she said , " two " parts .\n'
        " Too short . This one has an <unk> word in it . The last one is here now .\n",
        encoding="utf-8",
    )
    source = Sentences(file)
    wanted = [
        Question("It is a well-known (short) text, isn 't it?", [], "text.txt:3"),
        Question('It has, she said, "two" parts.', [], "text.txt:3"),
        Question("The last one is here now.", [], "text.txt:4"),
    ]
    assert list(source) == wanted
    assert list(source) == wanted
    assert source.skipped == {"too short": 1, "holds an unknown word": 1}
    assert list(Sentences(file, limit=1)) == wanted[:1]
    assert sorted(one.question for one in Sentences(file, seed=1)) == sorted(one.question for one in wanted)
    with pytest.raises(DataError, match="limit is 0"):
        Sentences(file, limit=0)


def groups(edits):
    return Counter(one.group for edit in edits for one in edit.probes)


def test_real_counterfact(real_data):
    edits = CounterFact(real_data / "counterfact" / "counterfact-edit.json").load()
    assert groups(edits) == {"generality/rephrase": 10_000, "locality/neighbourhood": 10_000}
    found = check_edits(edits)
    assert (len(found.conflicts), sum(map(len, found.conflicts)), len(found.duplicates)) == (62, 143, 4)
    assert found.reliability_ceiling == pytest.approx(0.9921)
    assert (len(found.overlapping), found.locality_ceiling) == (214, pytest.approx(0.9786))


def test_real_zsre(real_data):
    edits = Zsre(real_data / "zsre" / "ZsRE-test-all.json").load()
    assert (len(edits), len({edit.prompt for edit in edits})) == (1301, 1283)
    assert groups(edits)["portability/reasoning"] == 771
    assert groups(edits)["locality/relation_specificity"] == 2602


@pytest.mark.parametrize(
    ("file", "rows", "probes"),
    [
        ("train_cf.json", 1427, 1409 + 1253 + 781 + 503 + 304),
        ("recent_train.json", 570, 1641 + 476 + 298 + 223 + 52),
        ("wikibio-test-all.json", 306, 612),
        ("wikibio-train-all.json", 464, 928),
    ],
)
def test_real_knowedit(real_data, file, rows, probes):
    source = KnowEdit(real_data / "knowedit" / file)
    edits = source.load()
    assert (len(edits), groups(edits).total()) == (rows, probes)
    assert not source.skipped


def test_real_sentences(real_data):
    assert len(list(Sentences(real_data / "wikitext2" / "test.txt"))) > 2000


def test_the_hub_is_not_asked_for_what_is_a_missing_file(monkeypatch):
    monkeypatch.setattr(tables, "_hub", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="no file"):
        KnowEdit("knowedit/train.json")
