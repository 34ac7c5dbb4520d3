"""Whatever a file holds, its reader takes it or raises a DataError; and `check` tells of what the reader refuses."""

import bz2
import io
import json
import sqlite3
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checking.malformed import FLAT, RECORDS, WEB, changed, lines, places
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kilm.tiny_dump import HEAD, TAIL, page, streams

from kedit.benchmarks.tables import read_table
from kedit.checking.command import Checked, examine
from kedit.checking.configuration import check_configuration
from kedit.checking.kinds import KINDS
from kedit.editing.edits import Edit
from kedit.editing.problems import Problems
from kedit.editing.records import read_json_lines, read_json_list
from kedit.editing.sources import DataError
from kedit.recipe.repository import Repository
from kedit.recipe.segments import KeyFile, Stamp, create_keys

quick = settings(
    max_examples=50, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                      max_size=3), max_leaves=6)  # fmt: skip


@st.composite
def mutated(draw: Any, whole: bytes) -> bytes:
    """A file of which some bytes are changed, taken out, doubled or put in."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        more = draw(st.integers(0, 12))
        piece = draw(
            st.binary(max_size=6) | st.sampled_from([b'"', b"{", b"]", b"\n", b"\\u", b"\\ud800", b"<", b"&", b","])
        )
        raw[at : at + more] = piece if draw(st.booleans()) else bytes(raw[at : at + more]) * 2
    return bytes(raw)


def taken_or_refused(file: Path, read: Callable[[Path], object]) -> bool:
    """Whether it was taken; anything but a DataError is a failure."""
    try:
        read(file)
    except DataError:
        return False
    return True


def check_agrees(kind: str, file: Path) -> None:
    """The reader refuses a file exactly where `check` has a problem, and what is told has its parts."""
    taken = taken_or_refused(file, KINDS[kind].read)
    checked = examine(file, kind)
    assert isinstance(checked, Checked)
    assert isinstance(checked.problems, Problems)
    assert (checked.problems.count == 0) == taken, (checked, file.read_bytes()[:500])
    assert all(problem.what for problem in checked.problems.kept)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# any bytes


@pytest.mark.parametrize(
    "kind", sorted(set(KINDS) - {"corpus", "repository", "aida_testa", "kore50", "rss500", "config"})
)
def test_any_bytes(folder, kind):
    @settings(quick, max_examples=15)
    @given(raw=st.binary(max_size=80) | st.text(max_size=40).map(lambda text: text.encode(errors="surrogatepass")))
    def run(raw):
        file = folder / "any.jsonl"
        file.write_bytes(raw)
        check_agrees(kind, file)

    run()


@quick
@given(raw=st.binary(max_size=60) | st.text('{}[]",:\\u0d8 -1eNaI\n\r\ufeff', max_size=30).map(str.encode))
def test_json_lines_and_lists(folder, raw):
    file = folder / "a.json"
    file.write_bytes(raw)
    taken_or_refused(file, lambda path: list(read_json_lines(path)))
    taken_or_refused(file, lambda path: list(read_json_list(path)))


@quick
@given(raw=st.text('ab",;\n\r\t\0é', max_size=40).map(str.encode) | st.binary(max_size=40))
def test_csv(folder, raw):
    for name in ("a.csv", "a.tsv"):
        (folder / name).write_bytes(raw)
        taken_or_refused(folder / name, lambda path: list(read_table(path)))


# files that were whole


@pytest.mark.parametrize("name", RECORDS)
def test_a_whole_file_with_other_bytes(folder, name):
    kind, record = RECORDS[name]

    @settings(quick, max_examples=40)
    @given(raw=mutated(lines(record) * 2))
    def run(raw):
        file = folder / f"{name}.jsonl"
        file.write_bytes(raw)
        check_agrees(kind, file)

    run()


@pytest.mark.parametrize("name", [*RECORDS, "web"])
def test_a_record_with_another_value_somewhere(folder, name):
    """Where a value of a record is anything else: this is where a reader would trust what it should look at."""
    kind, record = RECORDS.get(name, ("webquestions", WEB))
    file = folder / f"{name}-value.jsonl"

    @quick
    @given(place=st.sampled_from(list(places(record))), value=values)
    def run(place, value):
        spoilt = changed(record, place, value)
        file.write_bytes(json.dumps([record, spoilt]).encode() if name == "web" else lines(record, spoilt))
        check_agrees(kind, file)

    def lines(*records: Any) -> bytes:
        return "\n".join(map(json.dumps, records)).encode()

    run()


@settings(quick, max_examples=50)
@given(st.data())
def test_csv_and_parquet_that_were_whole(folder, data):
    table = pa.table({key: [str(value)] * 3 for key, value in FLAT.items()})
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    text = ",".join(FLAT) + "\n" + ",".join(map(str, FLAT.values())) + "\n"
    for name, whole in (("b.csv", text.encode()), ("b.parquet", parquet.getvalue())):
        (folder / name).write_bytes(data.draw(mutated(whole)))
        check_agrees("counterfact", folder / name)


@quick
@given(name=st.none() | st.text(max_size=4), sections=st.none() | values.map(json.dumps) | st.text(max_size=12))
def test_articles_of_structured_wikipedia(folder, name, sections):
    file = folder / "articles.parquet"
    named = {"name": ["a", name], "sections": ["[]", sections]}
    schema = pa.schema({"name": pa.string(), "sections": pa.string()})
    text = {key: [one and one.encode(errors="ignore").decode() for one in column] for key, column in named.items()}
    pq.write_table(pa.table(text, schema=schema), file)
    check_agrees("articles", file)


PAGES = [page(f"P{number}", f"Text {number} é.") for number in range(6)]


@settings(quick, max_examples=60)
@given(st.data())
def test_dumps(folder, data):
    whole = (HEAD + "".join(PAGES) + TAIL).encode()
    packed = b"".join(streams(PAGES, 2)) if data.draw(st.booleans()) else bz2.compress(whole)
    for name, content in (("d.xml", whole), ("d.xml.bz2", packed)):
        (folder / name).write_bytes(data.draw(mutated(content)))
        check_agrees("dump", folder / name)


# what kedit stores


@settings(quick, max_examples=40)
@given(raw=st.data())
def test_files_of_keys(folder, raw):
    stamp = Stamp(b"0" * 16, 1, 3, "float32")
    path = folder / "keys-1.bin"
    create_keys(path, stamp)
    file = KeyFile(path, stamp, write=True)
    stretches = file.write(0, np.ones((4, 3), np.float32))
    file.close()
    whole = path.read_bytes()
    path.write_bytes(raw.draw(mutated(whole)))

    def read(path: Path) -> None:
        opened = KeyFile(path, stamp)
        try:
            blocks = list(opened.blocks(stretches, 4, 2))
            assert np.concatenate([keys for _, keys in blocks]).tolist() == np.ones((4, 3)).tolist()
        finally:
            opened.close()

    taken_or_refused(path, read)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> bytes:
    home = tmp_path_factory.mktemp("store")
    with Repository.open(home, encoder="abc", key_width=2) as store:
        store.add([Edit(f"e{n}", f"The colour of {n} is", "red") for n in range(4)], np.ones((4, 2), np.float32))
    with sqlite3.connect(home / "edits.sqlite") as copy:
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy.close()
    return (home / "edits.sqlite").read_bytes() + b"--" + (home / "keys-1.bin").read_bytes()


@settings(quick, max_examples=30)
@given(st.data())
def test_repositories(database, data):
    truth, _, keys = database.rpartition(b"--")
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "edits.sqlite").write_bytes(data.draw(mutated(truth)))
        (Path(home) / "keys-1.bin").write_bytes(data.draw(mutated(keys)))
        examine(Path(home), "repository")


META = ("schema", "repository", "encoder", "generation", "key_width", "dtype")


@settings(quick, max_examples=30)
@given(key=st.sampled_from(META), value=st.text(string.printable, max_size=9) | st.integers().map(str))
def test_what_a_repository_says_of_itself(database, key, value):
    truth, _, keys = database.rpartition(b"--")
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "edits.sqlite").write_bytes(truth)
        (Path(home) / "keys-1.bin").write_bytes(keys)
        with sqlite3.connect(Path(home) / "edits.sqlite") as store:
            store.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        store.close()
        examine(Path(home), "repository")


# configurations

CONFIG = b"""\
facts: a.jsonl
output: [one, {two: 3}]
generator:
  class_path: kedit.distill.SplitDocument
seed: 4
"""


@settings(quick, max_examples=30)
@given(raw=mutated(CONFIG) | st.binary(max_size=40) | st.text("ab:-[]{}&*!?|>'\"#\n ", max_size=40).map(str.encode))
def test_configurations(folder, raw):
    file = folder / "c.yaml"
    file.write_bytes(raw)
    taken_or_refused(file, check_configuration)
    examine(file, "config")


def test_valid_files_are_taken(folder):
    """Or nothing above would say much."""
    for name, (kind, record) in RECORDS.items():
        file = folder / f"{name}-good.jsonl"
        file.write_bytes(lines(record))
        assert taken_or_refused(file, KINDS[kind].read), name
