import bz2
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dump import page, sample, streams, write
from transformers import PreTrainedTokenizerFast

from kedit.editing.sources import DataError
from kedit.kilm import articles, build, join, plan, pool, units
from kedit.kilm.build import build_corpus
from kedit.kilm.corpus import ARRAYS, Corpus
from kedit.kilm.titles import Titles, hashes, resolve
from kedit.lm.backbones import load_tokenizer
from kedit.lm.text import encode, token_span
from kedit.lm.tokenizers import train_tokenizer


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def tokenizer(tokenizer_folders):
    return tokenizer_folders["bart"]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(plan, "PART_BYTES", 700)


@pytest.fixture
def dump(tmp_path):
    return write(tmp_path / "a.xml.bz2", sample(), each=9)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("build.json", "lock")
    }


def accounted(manifest):
    for name in ("pages", "links"):
        counts = dict(manifest[name])
        assert counts.pop("total") == sum(counts.values())
    assert manifest["links"]["total"] > 0


@pytest.mark.parametrize("setting", ["lead", "full"])
def test_a_corpus_from_end_to_end(tmp_path, dump, tokenizer, small_parts, setting):
    manifest = build_corpus([dump], tokenizer, tmp_path / "c", setting, chunk_tokens=48, workers=1)
    accounted(manifest)
    assert manifest["parts"] > 3
    assert manifest["pages"] == {
        "total": 86,
        "article": 41,
        "disambiguation": 1,
        "other namespace": 1,
        "redirect": 42,
        "without wikitext": 1,
    }
    assert manifest["redirects"] == {
        "to an article": 40,
        "to a page not in the dump": 0,
        "to a disambiguation page": 0,
        "in a loop": 2,
        "duplicate title": 0,
    }
    assert manifest["descriptions_by_source"] == {"sentence": 1, "template": 40}
    links = manifest["links"]
    assert links["target is a disambiguation page"] == links["target is a redirect in a loop"] == 1
    assert links.get("target not in the dump", 0) == (0 if setting == "lead" else 40 * 12)
    corpus = Corpus(tmp_path / "c")
    assert corpus.manifest == manifest
    assert (len(corpus), corpus.entities) == (manifest["units"], 41)
    assert corpus.lengths.sum() == manifest["tokens"]
    assert 0 < corpus.lengths.min() <= corpus.lengths.max() <= 48
    assert len(corpus.mention_entities) == manifest["mentions"] == links["kept"] == corpus.mention_offsets[-1]
    assert not {"parsed", "units", "titles"} & {path.name for path in (tmp_path / "c").iterdir()}
    surfaces = set()
    for unit in range(len(corpus)):
        tokens, mentions = corpus.tokens(unit), corpus.mentions(unit)
        assert tokens.dtype == mentions.dtype == np.int32
        assert len(tokens) == corpus.lengths[unit]
        assert (mentions[1:, 0] >= mentions[:-1, 1]).all()
        assert (
            corpus.mention_entities[corpus.mention_offsets[unit] :][: len(mentions)].tolist() == mentions[:, 2].tolist()
        )
        for i, (start, end, entity) in enumerate(mentions.tolist()):
            assert 0 <= start < end <= len(tokens)
            surface = corpus.surface(unit, i)
            surfaces.add(surface)
            title = corpus.title(entity)
            number = title.split()[-1]
            assert surface in (
                f"Town{number}",
                f"old_name {number}s",
                f"old name {number}s",
                title,
                "the third",
                "Ends",
            )
            assert entity in dict(corpus.candidates(surface))
    assert {"the third", "Ends", "Town7", "old name 7s"} <= surfaces
    last = corpus.article(len(corpus) - 1)
    assert (last, corpus.title(40), corpus.description(3)) == ("Ends", "Ends", "Town number 3")
    assert corpus.tokenizer().decode(corpus.title_tokens(3).tolist()).strip() == "Town 3"
    assert corpus.tokenizer().decode(corpus.description_tokens(3).tolist()).strip() == "Town number 3"
    assert corpus.knowledge_lengths[3] == len(corpus.title_tokens(3)) + len(corpus.description_tokens(3))
    assert corpus.candidates("nothing") == corpus.candidates("zzz") == corpus.candidates("") == []
    again = pickle.loads(pickle.dumps(corpus))
    assert again.tokens(1).tolist() == corpus.tokens(1).tolist()


def test_candidates_of_a_surface_form_come_with_their_counts(tmp_path, tokenizer):
    made = [page("Mercury (planet)", "x"), page("Mercury (god)", "y")]
    made += [page(f"P{i}", f"See [[Mercury ({'god' if i == 4 else 'planet'})|Mercury]].") for i in range(5)]
    build_corpus([write(tmp_path / "a.xml", made)], tokenizer, tmp_path / "c", workers=1)
    corpus = Corpus(tmp_path / "c")
    assert corpus.candidates("Mercury") == [(0, 4), (1, 1)]
    assert corpus.candidates("mercury") == []


def test_the_number_of_workers_and_the_container_change_nothing(tmp_path, dump, tokenizer, small_parts):
    build_corpus([dump], tokenizer, tmp_path / "one", "full", workers=1)
    build_corpus([dump], tokenizer, tmp_path / "two", "full", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    plain = write(tmp_path / "b.xml", sample())
    build_corpus([plain], tokenizer, tmp_path / "plain", "full", workers=1)
    for name in ARRAYS:
        assert (tmp_path / f"plain/{name}.npy").read_bytes() == (tmp_path / f"one/{name}.npy").read_bytes()


def test_interrupted_at_any_step_it_goes_on_and_gives_the_same_bytes(
    tmp_path, dump, tokenizer, small_parts, monkeypatch
):
    build_corpus([dump], tokenizer, tmp_path / "whole", workers=1)
    expected = contents(tmp_path / "whole")
    original = articles.settle
    steps = 0

    def count(beside, path):
        nonlocal steps
        steps += 1
        original(beside, path)

    def interrupted_at(step, after):
        def settle(beside, path):
            nonlocal steps
            steps += 1
            if after:
                original(beside, path)
            if steps == step:
                raise KeyboardInterrupt
            if not after:
                original(beside, path)

        return settle

    def use(settle):
        nonlocal steps
        steps = 0
        for module in (articles, join, plan, units):
            monkeypatch.setattr(module, "settle", settle)

    use(count)
    build_corpus([dump], tokenizer, tmp_path / "counted", workers=1)
    total = steps
    assert total > 15
    output = tmp_path / "c"
    for step in range(1, total + 1):  # one folder, interrupted again and again
        use(interrupted_at(2, after=bool(step % 2)))
        try:
            build_corpus([dump], tokenizer, output, workers=1)
        except KeyboardInterrupt:
            if step > 2 and not (output / "manifest.json").exists():
                with pytest.raises(DataError, match="unfinished"):
                    Corpus(output)
    use(original)
    build_corpus([dump], tokenizer, output, workers=1)
    assert contents(output) == expected


def test_killed_and_run_again(tmp_path, dump, tokenizer, small_parts):
    build_corpus([dump], tokenizer, tmp_path / "whole", workers=1)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom kedit.kilm import build, plan, units\n"
        "plan.PART_BYTES = 700\nold = units.UnitWriter._article\n"
        "def slow(self, *a):\n    time.sleep(0.05)\n    old(self, *a)\n"
        "units.UnitWriter._article = slow\n"
        "build.build_corpus([Path(sys.argv[1])], sys.argv[2], Path(sys.argv[3]), workers=2)\n"
    )
    output = tmp_path / "c"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(dump), tokenizer, str(output)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and len(list(output.glob("units/*"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "manifest.json").exists()
    assert list(output.glob("parsed/*.parquet"))
    build_corpus([dump], tokenizer, output, workers=1)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_finished_corpus_is_not_built_again_and_another_one_is_refused(tmp_path, dump, tokenizer, tokenizer_folders):
    output = tmp_path / "c"
    manifest = build_corpus([dump], tokenizer, output, workers=1)
    before = contents(output)
    os.utime(dump)  # touched, with the same bytes
    assert build_corpus([dump], tokenizer, output, workers=1) == manifest
    assert contents(output) == before
    other = write(tmp_path / "other.xml", sample())
    for arguments, said in (
        (([dump], tokenizer, output, "full"), "setting lead, asked for is full"),
        (([dump], tokenizer, output, "lead", 64), "chunk_tokens 448, asked for is 64"),
        (([dump], tokenizer_folders["t5"], output), r"tokenizer-bart.* asked for is .*tokenizer-t5"),
        (([other], tokenizer, output), r"sources a.xml.bz2 .*asked for is other.xml"),
        (([dump, other], tokenizer, output), "asked for is a.xml.bz2 .*, other.xml"),
    ):
        with pytest.raises(DataError, match=said):
            build_corpus(*arguments)
    corpus = Corpus(output)
    corpus.check_tokenizer(corpus.tokenizer())
    corpus.tokenizer().add_tokens(["<ent>"], special_tokens=True)
    corpus.check_tokenizer(corpus.tokenizer())
    with pytest.raises(DataError, match=r"built with the tokenizer .*bart.*the model has \w+"):
        corpus.check_tokenizer(train_tokenizer(["quite other words are found in this text"], 300, 0))


def test_wrong_arguments(tmp_path, dump, tokenizer):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "none").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "mine/tokenizer").mkdir(parents=True)
    for arguments, said in (
        (([tmp_path], tokenizer, tmp_path / "c"), "is a folder: give the files in it"),
        (([dump], tokenizer, tmp_path / "file"), "is a file: choose a folder"),
        (([dump], tokenizer, tmp_path / "mine"), "not empty and holds no corpus"),
        (([dump], tokenizer, tmp_path / "c", "lead", 448, None, 0), "--workers 0"),
        (([dump], tokenizer, tmp_path / "full"), "not empty and holds no corpus"),
        (([dump], str(tmp_path / "none"), tmp_path / "c"), "no tokenizer loads"),
        (([tmp_path / "b.xml"], tokenizer, tmp_path / "c"), "no such file"),
        (([dump, dump], tokenizer, tmp_path / "c"), "same file twice"),
        (([], tokenizer, tmp_path / "c"), "no dump given"),
        (([dump], tokenizer, tmp_path / "c", "lead", 2), "chunk_tokens 2"),
    ):
        with pytest.raises(DataError, match=said):
            build_corpus(*arguments)


def test_a_repaired_file_takes_the_place_of_the_damaged_one(tmp_path, dump, tokenizer, small_parts, monkeypatch):
    second = tmp_path / "b.xml.bz2"
    pages = [page(f"Village {i}", f"Village {i} is near [[Town {i}]].") for i in range(30)]
    whole = streams(pages, 5)
    second.write_bytes(b"".join(whole[:3]))
    output = tmp_path / "c"
    with pytest.raises(DataError, match="cut short"):
        build_corpus([second, dump], tokenizer, output, workers=2)
    read = {path: path.stat().st_mtime_ns for path in (output / "parsed").glob("*.parquet")}
    second.write_bytes(b"".join(whole))
    original = articles.settle

    def stop(beside, path):  # before the manifest, when all else is done
        if path.name == "manifest.json":
            assert read.items() & {p: p.stat().st_mtime_ns for p in (output / "parsed").iterdir()}.items()
            raise KeyboardInterrupt
        original(beside, path)

    monkeypatch.setattr(plan, "settle", stop)
    with pytest.raises(KeyboardInterrupt):
        build_corpus([second, dump], tokenizer, output, workers=1)
    monkeypatch.setattr(plan, "settle", original)
    # the titles and units of that try are of another order of files
    build_corpus([dump, second], tokenizer, output, workers=1)
    build_corpus([dump, second], tokenizer, tmp_path / "whole", workers=1)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_part_leaves_the_others_usable(tmp_path, dump, tokenizer, small_parts, workers):
    bad = tmp_path / "bad.xml.bz2"
    bad.write_bytes(b"".join(streams(sample(), 9)[:5]))
    with pytest.raises(DataError, match=r"bad\.xml\.bz2: the file is cut short \(no </mediawiki>\)"):
        build_corpus([dump, bad], tokenizer, tmp_path / "c", workers=workers)
    assert len(list((tmp_path / "c/parsed").glob("*.parquet"))) >= 4


def test_pages_of_one_title_count_once(tmp_path, dump, tokenizer):
    more = write(
        tmp_path / "more.xml", [page("Town 3", "Again [[Town 4]]."), page("Old name 1", "#REDIRECT [[Town 2]]")]
    )
    manifest = build_corpus([dump, more], tokenizer, tmp_path / "c", workers=1)
    accounted(manifest)
    assert (manifest["pages"]["article"], manifest["pages"]["duplicate title"]) == (41, 1)
    assert manifest["redirects"]["duplicate title"] == 1
    assert manifest["links"]["on a page whose title stood before"] == 1
    assert manifest["entities"] == 41


def test_a_dump_without_articles_is_refused_and_does_not_block_the_next_try(tmp_path, dump, tokenizer, capsys):
    output = tmp_path / "c"
    web = tmp_path / "web.xml.bz2"
    web.write_bytes(bz2.compress(b"<!DOCTYPE html><html><br></html>"))
    for bad, said in (
        (write(tmp_path / "a.xml", []), r"a\.xml holds no pages"),
        (write(tmp_path / "b.xml", [page("X", "{{x}}"), page("Y", " ")]), "1 article without text, 1 without wikitext"),
        (web, r"web\.xml\.bz2 is no Wikipedia dump: .* found <html>"),
    ):
        with pytest.raises(DataError, match=said):
            build_corpus([bad], tokenizer, output, workers=1)
    manifest = build_corpus([dump], tokenizer, output, workers=1)
    assert "the unfinished build in" in capsys.readouterr().err
    build_corpus([dump], tokenizer, tmp_path / "whole", workers=1)
    assert contents(output) == contents(tmp_path / "whole")
    assert manifest["sources"][0]["file"] == "a.xml.bz2"


def test_an_article_without_text_is_an_entity_without_a_description(tmp_path, tokenizer):
    made = [page("X", "{{x}}"), page("Y", "See [[x]] there.")]
    build_corpus([write(tmp_path / "a.xml", made)], tokenizer, tmp_path / "c", workers=1)
    corpus = Corpus(tmp_path / "c")
    assert (corpus.entities, len(corpus), corpus.description(0)) == (2, 1, "")
    assert corpus.knowledge_lengths[0] == 0


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_a_table_of_descriptions_stands_between_template_and_first_sentence(tmp_path, tokenizer, kind):
    made = [
        page("A", "{{Short description|own}} The A is here. See [[b]], [[C]], [[D]]."),
        page("B", "The B is a good thing. So it is."),
        page("C", "{{short description|none}}The C is a good thing."),
        page("D", "{{Short description|Wikimedia list article}}The D is a good thing."),
        page("E", "The E is a good thing. " + "{{Short description|" + "word " * 40 + "}}"),
        page("F", "The F is a good thing."),
    ]
    names = ["A", "b", "C", "D", "Zebra", "F"]
    texts = ["other", "from the table", "from the table", "better", "an animal", "Wikimedia list article"]
    path = tmp_path / f"table.{kind}"
    if kind == "tsv":
        lines = [f"{name}\t{text}\n" for name, text in zip(names, texts, strict=True)]
        path.write_text("title\tdescription\n" + "".join(lines))
    else:
        pq.write_table(pa.table({"title": names, "description": texts}), path)
    dump = write(tmp_path / "a.xml", made)
    manifest = build_corpus([dump], tokenizer, tmp_path / "c", "full", 40, descriptions=path, workers=1)
    accounted(manifest)
    corpus = Corpus(tmp_path / "c")
    found = [corpus.description(entity) for entity in range(6)]
    assert found[:4] + found[5:] == ["own", "from the table", "", "better", ""]
    assert found[4].startswith("word word")
    assert len(corpus.description_tokens(4)) <= 20
    assert manifest["descriptions_shortened"] == 1
    assert manifest["descriptions_by_source"] == {"generic": 1, "none": 1, "table": 2, "template": 2}
    assert manifest["links"]["kept"] == 2
    assert manifest["links"]["kept, but its entity has no description"] == 1
    with pytest.raises(DataError, match=r"descriptions table.* asked for is none"):
        build_corpus([dump], tokenizer, tmp_path / "c", "full", 40, workers=1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.tsv", b"A\tx\nB x\n", r"t\.tsv:2: wanted title<TAB>description, found 'B x"),
        ("t.tsv", b"\xff\tx\n", "not UTF-8"),
        ("t.parquet", b"A\tx\n", "no readable parquet file"),
    ],
)
def test_a_bad_table_of_descriptions(tmp_path, dump, tokenizer, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        build_corpus([dump], tokenizer, tmp_path / "c", descriptions=tmp_path / name, workers=1)
    assert not (tmp_path / "c/parsed").exists()  # said before the dump is read


def test_a_table_without_the_columns(tmp_path, dump, tokenizer):
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no column description"):
        build_corpus([dump], tokenizer, tmp_path / "c", descriptions=tmp_path / "t.parquet", workers=1)


def test_structured_wikipedia_as_a_dump(tmp_path, tokenizer):
    def article(name, other):
        link = {"text": other, "url": f"https://en.wikipedia.org/wiki/{other}"}
        parts = [{"value": f"{name} stands beside {other}.", "links": [link]}]
        row = {
            "name": name,
            "abstract": "",
            "description": f"the {name}",
            "sections": [{"name": "", "has_parts": parts}],
        }
        return row | {"redirects": [{"name": f"Old_{name}"}]}

    path = tmp_path / "s.parquet"
    pq.write_table(pa.Table.from_pylist([article("Aa", "Bb"), article("Bb", "Old_Aa"), article("Cc", "Dd")]), path)
    manifest = build_corpus([path], tokenizer, tmp_path / "c", workers=1)
    accounted(manifest)
    corpus = Corpus(tmp_path / "c")
    assert corpus.mention_entities.tolist() == [1, 0]
    assert corpus.description(2) == "the Cc"
    assert manifest["links"] == {"total": 3, "kept": 2, "target not in the dump": 1}


def test_no_space_left(tmp_path, dump, tokenizer, small_parts, monkeypatch):
    original = units.settle

    def full(beside, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(units, "settle", full)
    with pytest.raises(
        DataError, match=r"no space left in .* MB more are needed, .* MB are free.*run the same command"
    ):
        build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    assert not list((tmp_path / "c").glob("**/*.partial"))
    assert list((tmp_path / "c/parsed").iterdir())
    monkeypatch.setattr(units, "settle", original)
    build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    monkeypatch.setattr(articles, "settle", full)
    with pytest.raises(DataError, match="no space left"):
        build_corpus([dump], tokenizer, tmp_path / "d", workers=1)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EFBIG, "File too large"), Exception("No space left on device (os error 28)"), OSError(122, "quota")],
)
def test_no_space_left_for_the_tokenizer(tmp_path, dump, tokenizer, monkeypatch, error):
    def full(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(build.Plan, "_compare", full)
        with pytest.raises(DataError, match="no space left in"):
            build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
        with pytest.raises(DataError, match="no space left in"):
            build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    (tmp_path / "c/build.json").unlink()
    (tmp_path / "c/build.json.7.partial").write_text("{")  # killed before build.json had its name
    build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    assert not list((tmp_path / "c").glob("**/*.partial"))


def test_a_tokenizer_without_the_needed_tokens_is_refused_before_reading(tmp_path, dump, tokenizer):
    settings = json.loads((Path(tokenizer) / "tokenizer_config.json").read_text())
    shutil.copytree(tokenizer, tmp_path / "t")
    for missing, said in ((("mask_token",), "neither <extra_id_0>"), (("eos_token", "pad_token"), "no end or padding")):
        kept = {name: value for name, value in settings.items() if name not in missing}
        (tmp_path / "t/tokenizer_config.json").write_text(json.dumps(kept))
        with pytest.raises(DataError, match=rf"--tokenizer .*{said}"):
            build_corpus([dump], str(tmp_path / "t"), tmp_path / "c", workers=1)
    assert not (tmp_path / "c/build.json").exists()
    build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    assert "<ent>" not in Corpus(tmp_path / "c").tokenizer().get_vocab()


def test_the_last_line_says_what_came_out(tmp_path, dump, tokenizer, capsys):
    manifest = build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    said = (
        f"41 articles, {manifest['links']['kept']} of {manifest['links']['total']:,} links kept, "
        f"{manifest['units']} units, {manifest['tokens']:,} tokens\n"
    )
    assert capsys.readouterr().out == f"{tmp_path / 'c/manifest.json'}: {said}"
    build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    assert capsys.readouterr().out == f"{tmp_path / 'c/manifest.json'} is complete already: {said}"


def test_a_second_build_in_the_same_folder_is_refused(tmp_path, dump, tokenizer):
    (tmp_path / "c").mkdir()
    with FileLock(tmp_path / "c/lock"), pytest.raises(DataError, match=r"another build is writing in .*/c"):
        build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    build_corpus([dump], tokenizer, tmp_path / "c", workers=1)


def test_other_errors_of_the_system_stay_what_they_are(tmp_path, dump, tokenizer, monkeypatch):
    def denied(beside, path):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(articles, "settle", denied)
    with pytest.raises(PermissionError):
        build_corpus([dump], tokenizer, tmp_path / "c", workers=1)


def test_a_damaged_corpus_says_what_is_missing(tmp_path, dump, tokenizer):
    output = tmp_path / "c"
    with pytest.raises(DataError, match=r"holds no corpus: run `python -m kedit corpus"):
        Corpus(output)
    build_corpus([dump], tokenizer, output, workers=1)
    whole = contents(output)

    def after(name, content):
        for path, old in whole.items():
            (output / path).write_bytes(old)
        if content is None:
            (output / name).unlink()
        else:
            (output / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            Corpus(output).tokenizer()
        assert name.split(".")[0].split("/")[0] in str(caught.value)
        assert "python -m kedit corpus" in str(caught.value)
        return str(caught.value)

    assert "missing" in after("mentions.npy", None)
    assert "damaged" in after("tokens.npy", whole["tokens.npy"][:-50])
    assert "damaged" in after("entities.arrow", whole["entities.arrow"][:-50])
    assert "missing" in after("anchors.arrow", None)
    assert "not readable" in after("manifest.json", b"{")
    assert "does not load" in after("tokenizer/tokenizer.json", b"{}")
    other = json.loads(whole["manifest.json"])
    assert "format 99" in after("manifest.json", json.dumps(other | {"format": 99}).encode())
    assert "numbers, not" in after("unit_offsets.npy", whole["articles.npy"])
    (output / "unit_offsets.npy").write_bytes(whole["unit_offsets.npy"])
    (output / "manifest.json").write_text(json.dumps(other | {"tokens": 5}))
    with pytest.raises(DataError, match="not 5"):
        Corpus(output)


WORDS = ["Town", "bridge", "It ended.", "was built", "x", "\n", "in 1893;", "naïve", "東京"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40), st.data())
def test_units_hold_every_mention_whole_and_are_short_enough(tokenizer_folders, words, data):
    text = " ".join(words).replace(" \n ", "\n").strip()
    encoded = encode(load_tokenizer(tokenizer_folders["bart"]), [text])[0] if text else None
    if encoded is None or not len(encoded.ids):
        return
    longest = data.draw(st.integers(8, 20))
    edges = sorted(set(data.draw(st.lists(st.integers(0, len(text)), max_size=8))))
    pairs = [(a, b) for a, b in pairwise(edges) if text[a:b].strip()]
    pairs = [(b - len(text[a:b].lstrip()), a + len(text[a:b].rstrip())) for a, b in pairs]
    spans = np.asarray(pairs).reshape(-1, 2)
    tokens = units.token_spans(encoded.offsets, spans)
    assert [tuple(span) for span in tokens] == [token_span(encoded.offsets, a, b) for a, b in spans]
    mentions, last = [], 0
    for start, end in tokens.tolist():
        if last <= start and end - start <= longest:
            mentions.append((start, end))
            last = end
    ranges = units.cut(text, encoded.offsets, np.asarray(mentions).reshape(-1, 2), longest)
    covered = [at for start, end in ranges for at in range(start, end)]
    assert covered == sorted(set(covered))
    assert all(0 < end - start <= longest for start, end in ranges)
    left_out = set(range(len(encoded.ids))) - set(covered)
    assert not "".join(text[a:b] for a, b in encoded.offsets[sorted(left_out)]).strip()
    for start, end in mentions:
        assert any(a <= start and end <= b for a, b in ranges)


def test_units_end_with_a_paragraph_or_a_sentence(tmp_path, tokenizer):
    sentence = "The painter was born in the town and painted the bridge. "
    text = "\n".join([(sentence * 3).strip()] * 4)
    build_corpus([write(tmp_path / "a.xml", [page("A", text)])], tokenizer, tmp_path / "c", chunk_tokens=60, workers=1)
    corpus = Corpus(tmp_path / "c")
    assert len(corpus) > 2
    for unit in range(len(corpus)):
        found = corpus.tokenizer().decode(corpus.tokens(unit).tolist()).strip()
        assert found.startswith("The painter")
        assert found.endswith("bridge.")


def test_links_that_cannot_be_mentions_are_counted(tmp_path, tokenizer):
    made = [page("A", f"[[A|{'word ' * 30}]] end. pre[[A|to]][[B|wn]] [[b]]"), page("B", "The B is here and there.")]
    manifest = build_corpus([write(tmp_path / "a.xml", made)], tokenizer, tmp_path / "c", chunk_tokens=12, workers=1)
    accounted(manifest)
    assert manifest["links"]["longer than a unit"] == 1
    assert manifest["links"]["kept"] + manifest["links"].get("shares a token with the mention before", 0) == 3


def test_redirect_chains(tmp_path):
    rows = [("A", "article", ""), ("B", "redirect", "A"), ("C", "redirect", "B"), ("D", "disambiguation", "")]
    rows += [("E", "redirect", "D"), ("F", "redirect", "F"), ("G", "redirect", "Z"), ("H", "redirect", "G")]
    rows += [(f"L{i}", "redirect", f"L{i + 1}" if i < 30 else "A") for i in range(31)]
    blank = dict.fromkeys(articles.SCHEMA.names)
    table = [blank | {"title": t, "kind": k, "redirect": r} for t, k, r in rows]
    pq.write_table(pa.Table.from_pylist(table, articles.SCHEMA), tmp_path / "a.parquet")
    titles, sizes, counts = resolve([tmp_path / "a.parquet"])
    found = dict(zip("ABCDEFGHZ", titles.look_up(hashes(list("ABCDEFGHZ"))).tolist(), strict=True))
    assert found == {"A": 0, "B": 0, "C": 0, "D": -2, "E": -2, "F": -3, "G": -1, "H": -1, "Z": -1}
    assert titles.look_up(hashes(["L30", "L20", "L0"])).tolist() == [0, 0, -3]
    assert sizes == [1]
    assert counts["in a loop"] >= 2
    assert Titles(np.zeros(0, np.uint64), np.zeros(0, np.int32)).look_up(hashes(["A"])).tolist() == [-1]


def die(advance):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(advance):
    advance(5)
    time.sleep(0.6)
    advance(5)


def work_on(folder, advance):
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_main_process(tmp_path, number):
    begun = tmp_path / "begun"
    begun.mkdir()
    script = (
        "import sys; from pathlib import Path; from test_kilm_corpus import work_on; from kedit.kilm import pool\n"
        "pool.run_jobs('testing', [pool.Job(work_on, (Path(sys.argv[1]),), 1)] * 2, 2)\n"
    )
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(begun)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        stderr=subprocess.DEVNULL,
        # a shell's background job ignores SIGINT, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(begun.iterdir())) < 2 and process.poll() is None:
        time.sleep(0.02)
    workers = [int(path.name) for path in begun.iterdir()]
    assert len(workers) == 2
    assert all(map(alive, workers))
    process.send_signal(number)
    process.wait(20)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.02)
    assert not any(map(alive, workers))


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match=r"a worker process was killed.*fewer --workers than 2"):
        pool.run_jobs("testing", [pool.Job(die, (), 1), pool.Job(die, (), 1)], 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch, workers):
    monkeypatch.setattr(pool, "LINE_SECONDS", 0.1)
    pool.run_jobs("testing", [pool.Job(sleep, (), 10), pool.Job(sleep, (), 10)], workers, unit="page", done=3)
    lines = capsys.readouterr().err.splitlines()
    assert any("s left" in line for line in lines)
    assert lines[-1].startswith("testing: 23 of 23 pages, ")


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    pool.run_jobs("testing", [pool.Job(sleep, (), 10)], 1)
    assert "10.0/10.0" in capsys.readouterr().err


def test_a_page_that_the_parser_gives_up_on_is_counted(tmp_path, dump, tokenizer, monkeypatch):
    original = articles.clean

    def picky(text, setting):
        if "Town 5" in text[:60]:
            raise articles.ParserError("no")
        return original(text, setting)

    monkeypatch.setattr(articles, "clean", picky)
    manifest = build_corpus([dump], tokenizer, tmp_path / "c", workers=1)
    accounted(manifest)
    assert manifest["pages"]["not parsable"] == 1


def test_one_part_is_one_task_of_datatrove(tmp_path, dump, tokenizer, small_parts):
    pytest.importorskip("datatrove")
    from datatrove.executor import LocalPipelineExecutor

    from kedit.kilm.cluster import corpus_executor

    build_corpus([dump], tokenizer, tmp_path / "one", workers=1)
    executor = corpus_executor(partial(LocalPipelineExecutor, workers=1), [dump], tokenizer, tmp_path / "c")
    executor.run()
    found = {name: data for name, data in contents(tmp_path / "c").items() if not name.startswith("logs/")}
    assert found == contents(tmp_path / "one")
    assert Corpus(tmp_path / "c").manifest["parts"] > 3


@pytest.mark.parametrize(("setting", "kept"), [("lead", 22), ("full", 107)])
def test_the_real_extract(tmp_path, real_data, setting, kept):
    manifest = build_corpus(
        [real_data / "wikipedia/enwiki-shortened-2016.xml.bz2"],
        str(real_data / "tokenizers/roberta"),
        tmp_path / "c",
        setting,
        workers=1,
    )
    accounted(manifest)
    pages = manifest["pages"]
    # the page of another namespace is a redirect too
    assert pages["article"] + pages.get("article without text", 0) + pages["disambiguation"] == 106
    assert pages["redirect"] + pages["other namespace"] == 100
    assert manifest["links"]["kept"] == kept
    corpus = Corpus(tmp_path / "c")
    for unit in range(len(corpus)):
        text = corpus.tokenizer().decode(corpus.tokens(unit).tolist())
        assert not [mark for mark in ("[[", "]]", "{{", "}}", "<ref", "'''") if mark in text]


def test_real_articles_in_a_dump_have_the_description_of_their_template(tmp_path, real_data):
    texts = {
        p.stem: p.read_text(encoding="utf-8") for p in sorted((real_data / "wikipedia/wikitext_shortdesc").glob("*"))
    }
    dump = write(tmp_path / "a.xml.bz2", [page(name, text) for name, text in texts.items()], each=2)
    manifest = build_corpus([dump], str(real_data / "tokenizers/roberta"), tmp_path / "c", "lead", workers=1)
    accounted(manifest)
    assert manifest["descriptions_by_source"] == {"sentence": 1, "template": 6}
    corpus = Corpus(tmp_path / "c")
    found = {corpus.title(entity): corpus.description(entity) for entity in range(7)}
    assert found["islamabad-full"].startswith("Islamabad (")
    assert {name: found[name] for name in ("athena", "bob-marley", "deliveroo")} == {
        "athena": "Greek goddess of wisdom",
        "bob-marley": "Jamaican reggae musician (1945–1981)",
        "deliveroo": "Food delivery company",
    }


def test_a_folder_made_anew_in_one_process_keeps_nothing_of_the_old_one(tmp_path, dump, tokenizer):
    build_corpus([dump], tokenizer, tmp_path / "c", chunk_tokens=48, workers=1)
    shutil.rmtree(tmp_path / "c")
    other = train_tokenizer(["quite other words are found in this text"], 300, 0)
    other.save_pretrained(tmp_path / "other")
    build_corpus([dump], str(tmp_path / "other"), tmp_path / "c", chunk_tokens=64, workers=1)
    build_corpus([dump], str(tmp_path / "other"), tmp_path / "d", chunk_tokens=64, workers=1)
    assert contents(tmp_path / "c") == contents(tmp_path / "d")
