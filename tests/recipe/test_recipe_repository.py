"""The repository against a dict, against kills, damage, a full disk and other processes."""

import errno
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.recipe import tables
from kedit.recipe.repository import Repository
from kedit.recipe.segments import LONGEST_STRETCH, OFFSET, RepositoryError

WIDTH = 4


def key_of(edit: Edit, width: int = WIDTH) -> np.ndarray:
    """A key that can be told from the text, so that a wrong row shows."""
    seed = int.from_bytes(f"{edit.prompt}|{edit.target}".encode()[-8:], "big")
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


def keys_of(edits, width: int = WIDTH) -> np.ndarray:
    return np.stack([key_of(edit, width) for edit in edits]) if len(edits) else np.empty((0, width), np.float32)


def edit(number: int, target: str = "red", **more) -> Edit:
    return Edit(f"id{number}", f"The colour of {number} is", target, **more)


def opened(folder: Path, **options) -> Repository:
    return Repository.open(folder, **{"encoder": "abc", "key_width": WIDTH, **options})


def add(repository: Repository, *edits: Edit, **options):
    return repository.add(edits, keys_of(edits), **options)


def texts(repository: Repository, **options) -> list[tuple[str, str, str]]:
    return [(one.id, one.edit.prompt, one.edit.target) for one in repository.list(limit=10_000, **options)]


def standing_keys(repository: Repository) -> dict[int, np.ndarray]:
    return {int(n): key for numbers, keys in repository.key_blocks(3) for n, key in zip(numbers, keys, strict=True)}


@pytest.fixture
def repository(tmp_path):
    with opened(tmp_path / "edits") as one:
        yield one


# what is stored


def test_an_edit_is_there_after_closing(tmp_path):
    with opened(tmp_path) as repository:
        added = add(repository, edit(1, subject="one", relation="colour"), edit(2, where="file:2"), source=None)
        assert added.counts == (2, 0, 0)
        assert [one.source for one in added] == ["", "file:2"]
    with opened(tmp_path) as repository:
        assert len(repository) == 2
        one = repository.get("id1")
        assert one == added[0]
        assert (one.edit.subject, one.edit.relation, one.number, one.live) == ("one", "colour", 1, True)
        rows, numbers = repository.keys()
        assert isinstance(rows, np.memmap)
        np.testing.assert_array_equal(rows, keys_of([edit(1), edit(2)]))
        assert numbers.tolist() == [1, 2]
        assert repository.numbered([2, 1, 2]) == [added[1], added[0], added[1]]
        assert repository.verify() == []


def test_of_the_same_prompt_the_newest_stands_and_the_older_is_history(repository):
    add(repository, edit(1), edit(2))
    added = add(repository, Edit("id1", " the  colour of 1 IS ", "blue"), edit(2), edit(3, "a"), edit(3, "b"))
    assert added.counts == (3, 2, 1)
    assert [one.id for one in added] == ["id1~3", "id2", "id3", "id3~5"]
    assert [(one.live, one.replaced_by) for one in added] == [(True, ""), (True, ""), (False, "id3~5"), (True, "")]
    assert [repository.get(one.id) for one in added] == added
    assert [one.edit.target for one in repository.history("The colour of 1 is")] == ["red", "blue"]
    assert repository.get("id1").replaced_by == "id1~3"
    assert [one.id for one in repository.list()] == ["id2", "id1~3", "id3~5"]
    assert sorted(standing_keys(repository)) == [2, 3, 5]
    assert [(one.added, one.ended) for one in repository.log()] == [(2, 1), (2, 0)]


def test_what_stands_already_is_told_and_not_written(repository):
    first = add(repository, edit(1))
    again = add(repository, Edit("other", "The colour of  1 is", " red"))
    assert again.counts == (0, 0, 1)
    assert list(again) == list(first)
    assert len(repository.log()) == 1
    assert add(repository, edit(1, "Red")).counts == (1, 1, 0)  # another case may be what an edit is for


def test_ids_are_kept_where_they_are_free(repository):
    added = add(repository, Edit("", "a", "x"), Edit("", "b", "x"), Edit("e2~5", "c", "x"), Edit("e2", "d", "x"))
    assert [one.id for one in added] == ["e1", "e2", "e2~5", "e2~4"]
    assert add(repository, Edit("e2", "e", "x"))[0].id == "e2~5~5"


def test_forgotten_edits_are_gone_and_do_not_bring_back_what_they_replaced(repository):
    add(repository, edit(1), edit(2), edit(1, "blue"))
    assert [one.id for one in repository.forget("id1~3")] == ["id1~3"]
    assert texts(repository) == [("id2", "The colour of 2 is", "red")]
    assert sorted(standing_keys(repository)) == [2]
    assert not repository.get("id1~3").live
    for wrong, told in (("id1~3", "was forgotten before"), ("id9", "'id9' is not here")):
        with pytest.raises(DataError, match=told):
            repository.forget(["id2", wrong])
    assert len(repository) == 1
    add(repository, edit(1, "green"))
    with pytest.raises(DataError, match="'id1' was replaced by 'id1~4'"):
        repository.forget(["id1"])
    assert repository.forget([]) == []


def test_pages_and_finds(repository):
    add(repository, *(edit(number, subject="50%_x" if number == 7 else "") for number in range(20)))
    assert [one.id for one in repository.list(offset=5, limit=3)] == ["id5", "id6", "id7"]
    assert [one.id for one in repository.find("COLOUR of 1 ")] == ["id1"]
    assert [one.id for one in repository.find("0%_")] == ["id7"]
    assert repository.find("%") == repository.find("50%")
    assert len(repository.find("red", limit=4)) == 4
    assert [one.number for one in repository.log(limit=1)] == [1]
    with pytest.raises(DataError, match="no edit 'x'"):
        repository.get("x")
    with pytest.raises(DataError, match="no edit of number 21"):
        repository.numbered([1, 21])


def test_rolling_back_is_exact_and_can_be_rolled_back(repository):
    add(repository, edit(1), edit(2))
    named = repository.snapshot("before the change")
    before, history = texts(repository), repository.history("The colour of 1 is")
    add(repository, edit(1, "blue"), edit(3))
    repository.forget("id2")
    after = repository.latest
    then = texts(repository)
    change = repository.roll_back(named)
    assert (change.kind, change.message, change.added, change.ended) == ("roll back", "to 2", 2, 2)
    assert texts(repository) == before == texts(repository, at=named)
    assert repository.history("The colour of 1 is")[:1] == history
    assert texts(repository, at=after) == then
    repository.roll_back(after)
    assert texts(repository) == then
    repository.roll_back(0)
    assert len(repository) == 0 == repository.count(at=0)
    repository.roll_back(named)
    assert texts(repository) == before
    assert [one.number for one in repository.list(at=after)] == sorted(
        one.number for one in repository.list(limit=99, at=after)
    )
    assert all(one.live and not one.replaced_by for one in repository.list(at=after))
    assert repository.verify() == []
    with pytest.raises(DataError, match="the log has 1 to 8"):
        repository.roll_back(9)


def test_moved_tells_what_an_index_must_drop_and_add(repository):
    add(repository, *(edit(number) for number in range(1, 6)))
    seen, index = repository.latest, set(standing_keys(repository))
    add(repository, edit(1, "blue"), edit(9))
    repository.forget("id3")
    repository.roll_back(seen)
    repository.forget("id5")
    moved = repository.moved(seen)
    index = (index - set(moved.dropped.tolist())) | set(moved.added.tolist())
    assert index == {1, 2, 3, 4} == set(standing_keys(repository))
    assert moved.change == repository.latest


def test_export_and_import_keep_ids_times_and_sources(tmp_path):
    file = tmp_path / "out.jsonl"
    with opened(tmp_path / "a") as one:
        add(one, edit(1, subject="ü"), edit(2), edit(1, "blue"), source="by hand")
        assert one.export_jsonl(file) == 2
        first = one.list()
    assert json.loads(file.read_text("utf-8").splitlines()[0])["id"] == "id2"
    with opened(tmp_path / "b", dtype="float16") as other:
        assert other.import_jsonl(file, keys_of, batch=1) == (2, 0, 0)
        assert other.import_jsonl(file, keys_of) == (0, 0, 2)
        same = [(s.id, s.edit, s.created, s.source) for s in other.list()]
        assert same == [(s.id, s.edit, s.created, s.source) for s in first]
        np.testing.assert_array_equal(standing_keys(other)[1], key_of(edit(2)).astype(np.float16))
        other.forget("id2")
        assert other.export_jsonl(file, at=1) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a"}', r"in.jsonl:2: no 'target'"),
        ('{"prompt": "a", "target": " "}', r"in.jsonl:2: 'target' is empty"),
        ('{"prompt": "a", "target": "b", "source": 3}', r"in.jsonl:2: 'source' is int"),
        ("[", r"in.jsonl:2: not JSON"),
    ],
)
def test_a_bad_line_of_an_import_writes_nothing(repository, tmp_path, line, told):
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "p", "target": "t"}\n' + line + "\n")
    with pytest.raises(DataError, match=told):
        repository.import_jsonl(file, keys_of)
    assert len(repository) == 0


# bad input


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prompt": " \n"}, r"edit 2 of 2 \(f:3\): 'prompt' is empty"),
        ({"target": ""}, r"edit 2 of 2 \(f:3\): 'target' is empty"),
        ({"target": "a\x00b"}, r"'target' holds the character U\+0000"),
        ({"prompt": "a\u202eb"}, r"U\+202E"),
        ({"prompt": "a\ud800"}, r"U\+D800"),
        ({"target": "x" * 1_000_000}, r"'target' has 1,000,000 characters"),
        ({"subject": None}, r"'subject' is NoneType"),
    ],
)
def test_bad_texts_are_refused_by_row_and_field(repository, changed, told):
    bad = Edit(**{"id": "b", "prompt": "p", "target": "t", "where": "f:3", **changed})
    with pytest.raises(DataError, match=told):
        repository.add([edit(1), bad], np.ones((2, WIDTH)))
    assert len(repository) == 0


def test_keys_are_had_by_their_numbers(tmp_path):
    with opened(tmp_path / "r") as repository:
        edits = [edit(number) for number in range(9)]
        stored = add(repository, *edits)
        repository.forget([stored[2].id])
        numbers = np.array([one.number for one in stored])[[7, 0, 5]]
        assert np.array_equal(repository.keys_of(numbers), keys_of([edits[7], edits[0], edits[5]]))
        assert repository.keys_of(numbers[:0]).shape == (0, WIDTH)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (np.ones((3, WIDTH)), "3 keys for 2 edits"),
        (np.ones((2, WIDTH + 1)), r"shape \[2, 5\]: wanted \[2, 4\]"),
        (np.ones(WIDTH), r"shape \[4\]"),
        (np.ones((2, WIDTH), np.int32), "dtype int32: wanted floats"),
        (np.array([["a"] * WIDTH] * 2), "wanted floats"),
        (np.array([[1.0] * WIDTH, [np.nan] * WIDTH]), "key 2 of 2 .*holds NaN or Inf"),
        (np.array([[np.inf] * WIDTH, [1.0] * WIDTH]), "key 1 of 2 .*holds NaN or Inf"),
        (np.array([[1.0] * WIDTH, [0.0] * WIDTH]), "key 2 of 2 .*is all zero"),
        (np.full((2, WIDTH), 1e30), "key 1 of 2 as float16 holds NaN or Inf: 2 such"),
        (np.full((2, WIDTH), 1e-30), "key 1 of 2 as float16 is all zero"),
    ],
)
def test_bad_keys_are_refused_by_row(tmp_path, keys, told):
    with opened(tmp_path, dtype="float16") as repository:
        with pytest.raises(DataError, match=told):
            repository.add([edit(1), edit(2)], keys)
        assert len(repository) == len(repository.log()) == 0
        assert repository.add([], np.empty((0, WIDTH))).counts == (0, 0, 0)


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(RepositoryError, match="no repository in"):
        opened(tmp_path / "none", create=False)
    with pytest.raises(RepositoryError, match="no repository in"):
        opened(tmp_path / "none", read_only=True)
    with pytest.raises(DataError, match="needs encoder and key_width"):
        Repository.open(tmp_path / "none")
    with pytest.raises(DataError, match="dtype 'int8'"):
        opened(tmp_path / "none", dtype="int8")
    opened(tmp_path).close()
    with pytest.raises(RepositoryError, match=r"the key width in .* is 4, not 5.*reencode"):
        opened(tmp_path, key_width=5)
    with pytest.raises(RepositoryError, match=r"the dtype in .* is float32, not float16"):
        opened(tmp_path, dtype="float16")
    with opened(tmp_path, read_only=True) as reader, pytest.raises(RepositoryError, match="opened to read"):
        reader.snapshot("x")
    with Repository.open(tmp_path) as keyless, pytest.raises(RepositoryError, match="without an encoder"):
        add(keyless, edit(1))
    database = sqlite3.connect(tmp_path / tables.DATABASE)
    database.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    database.commit()
    database.close()
    with pytest.raises(RepositoryError, match="schema 2, this kedit knows 1: install a newer"):
        opened(tmp_path)


# other encoders, loss and damage


def test_another_encoder_is_refused_and_can_encode_again(tmp_path):
    with opened(tmp_path) as repository:
        add(repository, edit(1), edit(2), edit(1, "blue"))
        repository.forget("id2")
    for read_only in (False, True):
        with pytest.raises(RepositoryError, match=r"encoded by abc, not by xyz.*reencode"):
            opened(tmp_path, encoder="xyz", read_only=read_only)
    with Repository.open(tmp_path) as repository:
        assert len(repository) == 1  # texts need no encoder
        assert repository.reencode("xyz", lambda edits: keys_of(edits, 6), key_width=6, dtype="float16", batch=2) == 3
        assert sorted(standing_keys(repository)) == [3]
        repository.roll_back(1)
    with opened(tmp_path, encoder="xyz", key_width=6) as repository:
        found = standing_keys(repository)
        np.testing.assert_array_equal(found[2], key_of(edit(2), 6).astype(np.float16))
        assert sorted(found) == [2, 3]
        repository.add([edit(5)], keys_of([edit(5)], 6))
        assert repository.verify() == []
    assert [path.name for path in tmp_path.glob("keys-*")] == ["keys-2.bin"]


def test_encoding_again_that_fails_leaves_everything(tmp_path):
    with opened(tmp_path) as repository:
        add(repository, edit(1), edit(2))
        with pytest.raises(DataError, match="NaN"):
            repository.reencode("xyz", lambda edits: np.full((len(edits), WIDTH), np.nan))
        with pytest.raises(DataError, match="dtype 'int8'"):
            repository.reencode("xyz", keys_of, dtype="int8")
        assert repository.meta["encoder"] == "abc"
        assert len(standing_keys(repository)) == 2
        assert add(repository, edit(3)).counts.written == 1
    assert len(list(tmp_path.glob("keys-*"))) == 1


def test_a_reader_sees_that_another_process_encoded_again(tmp_path):
    with opened(tmp_path) as writer:
        add(writer, edit(1))
        with opened(tmp_path, read_only=True) as reader, Repository.open(tmp_path, read_only=True) as keyless:
            assert len(standing_keys(reader)) == len(standing_keys(keyless)) == 1
            writer.reencode("xyz", lambda edits: keys_of(edits, 6), key_width=6)
            assert standing_keys(keyless)[1].shape == (6,)
            with pytest.raises(RepositoryError, match="encoded by xyz, not by abc"):
                reader.keys()


@pytest.mark.parametrize("harm", ["missing", "short", "header"])
def test_lost_keys_are_told_and_made_again(tmp_path, harm):
    with opened(tmp_path) as repository:
        add(repository, edit(1), edit(2))
    file = tmp_path / "keys-1.bin"
    data = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-3] if harm == "short" else b"x" + data[1:])
    with pytest.raises(RepositoryError, match=r"keys-1.bin .*reencode\(encoder, encode\)"):
        opened(tmp_path)
    with Repository.open(tmp_path) as repository:
        assert len(repository.list()) == 2
        assert any("keys-1.bin" in line for line in repository.verify())
        repository.reencode("abc", keys_of)
    with opened(tmp_path) as repository:
        np.testing.assert_array_equal(standing_keys(repository)[2], key_of(edit(2)))
        assert repository.verify() == []


def test_every_changed_byte_of_the_keys_is_noticed(tmp_path):
    with opened(tmp_path) as repository:
        add(repository, edit(1), edit(2))
        add(repository, edit(3))
    file = tmp_path / "keys-1.bin"
    data = file.read_bytes()
    for place in range(0, len(data), 3):
        file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(RepositoryError, match="reencode"), opened(tmp_path, read_only=True) as repository:
            list(repository.key_blocks())
    file.write_bytes(data + b"torn")  # the end of a write that was never acknowledged
    with opened(tmp_path) as repository:
        assert len(standing_keys(repository)) == 3
    assert file.read_bytes() == data
    assert len(data) == OFFSET + 3 * WIDTH * 4


def test_a_changed_letter_is_noticed(tmp_path):
    with opened(tmp_path) as repository:
        add(repository, edit(1, "crimson"), edit(2))
    file = tmp_path / tables.DATABASE
    data = file.read_bytes()
    assert data.count(b"crimson") == 1
    file.write_bytes(data.replace(b"crimson", b"crimsom"))
    with opened(tmp_path) as repository:
        assert repository.get("id2").live
        with pytest.raises(RepositoryError, match=r"edit number 1 \('id1'\) is damaged"):
            repository.list()
        assert len(repository.verify()) == 1


def test_changed_bytes_of_the_database_are_noticed_or_harmless(tmp_path):
    with opened(tmp_path) as repository:
        add(repository, *(edit(number) for number in range(30)))
        repository.forget("id3")
        wanted = texts(repository)
    file = tmp_path / tables.DATABASE
    data = file.read_bytes()
    noticed = 0
    for place in np.random.default_rng(0).choice(len(data), 60, replace=False):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            with opened(tmp_path, read_only=True) as repository:
                if repository.verify():
                    noticed += 1
                else:
                    assert texts(repository) == wanted
        except DataError:
            noticed += 1
    assert noticed
    file.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(RepositoryError, match=r"cannot be read .*restore it"):
        opened(tmp_path)
    file.unlink()
    with pytest.raises(RepositoryError, match="missing beside its keys"):
        opened(tmp_path)


def test_a_making_cut_short_is_made_anew(tmp_path):
    sqlite3.connect(tmp_path / tables.DATABASE).close()
    (tmp_path / tables.DATABASE).touch()
    with pytest.raises(RepositoryError, match="is empty"):
        opened(tmp_path, read_only=True)
    with opened(tmp_path) as repository:
        assert add(repository, edit(1)).counts.written == 1
    for file in tmp_path.glob(f"{tables.DATABASE}*"):
        file.unlink()
    (tmp_path / tables.DATABASE).touch()
    with pytest.raises(RepositoryError, match="is empty beside its keys: restore it"):
        opened(tmp_path)


def test_long_batches_have_several_checksums(tmp_path):
    count = LONGEST_STRETCH + 10
    edits = [Edit("", f"p{number}", "t") for number in range(count)]
    keys = np.random.default_rng(0).standard_normal((count, WIDTH)).astype(np.float32)
    with opened(tmp_path) as repository:
        repository.add(edits, keys)
        blocks = list(repository.key_blocks(1000))
        assert [len(numbers) for numbers, _ in blocks] == [LONGEST_STRETCH, 10]
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), keys)


def test_what_lies_where_nothing_can_be_written_is_read_as_it_lies(tmp_path, monkeypatch):
    with opened(tmp_path) as repository:
        add(repository, edit(1))
    connect = sqlite3.connect

    class Unwritable(sqlite3.Connection):
        def execute(self, *_):
            raise sqlite3.OperationalError("unable to open database file")

    def opening(place, **options):
        return connect(place, **options, **({} if "immutable" in str(place) else {"factory": Unwritable}))

    monkeypatch.setattr(sqlite3, "connect", opening)
    with opened(tmp_path, read_only=True) as reader:
        assert len(reader) == 1
    log = tmp_path / f"{tables.DATABASE}-wal"
    log.write_bytes(b"x")  # what stands in a log must not be passed over
    with pytest.raises(RepositoryError, match="unable to open"):
        opened(tmp_path, read_only=True)


def test_damaged_tables_are_told(tmp_path):
    with opened(tmp_path) as repository:
        add(repository, edit(1))
        broken = [("UPDATE edit SET until = 9", "0 edits stand, by the log it should be 1"),
                  ("UPDATE edit SET prompt_hash = x'00'", "not found by its prompt"),
                  ("UPDATE edit SET subject = x'00'", "is damaged"),
                  ("DELETE FROM stretch", "keys of edits 1 to 1 have no checksum"),
                  ("DELETE FROM meta WHERE key = 'dtype'", "is damaged (meta")]  # fmt: skip
        for statement, told in broken:
            repository._connection.execute("BEGIN")
            repository._connection.execute(statement)
            problems = repository.verify()
            repository._connection.execute("ROLLBACK")
            assert len(problems) == 1
            assert told in problems[0]
        assert repository.verify() == []


def test_after_a_commit_that_failed_the_log_is_written_over_first(tmp_path, monkeypatch):
    with opened(tmp_path) as repository:
        add(repository, edit(1))

        def failing(kind, message, added, ended):
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(repository, "_log", failing)
            with pytest.raises(sqlite3.OperationalError):
                add(repository, edit(2))
        statements: list[str] = []
        repository._connection.set_trace_callback(statements.append)
        add(repository, edit(3))
        assert statements.index("UPDATE meta SET value = value WHERE key = 'schema'") < statements.index(
            "BEGIN IMMEDIATE"
        )
        assert [one.id for one in repository.list()] == ["id1", "id3"]
        assert repository.verify() == []


# a full disk


def test_a_full_disk_acknowledges_nothing_and_harms_nothing(tmp_path):
    """Under a limit on file sizes, at every size where something of an add may stop."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    with opened(tmp_path) as repository:
        add(repository, edit(0))
        for round_ in range(1, 25):
            before, change = texts(repository), repository.latest
            more = [Edit("", f"{round_}-{n}-{'x' * 300}", "t") for n in range(20)]
            resource.setrlimit(resource.RLIMIT_FSIZE, (round_ * 6000, hard))
            told = ""
            try:
                add(repository, *more)
            except RepositoryError as error:
                told = str(error)
            try:
                if told:
                    refused += 1
                    assert "no space" in told
                    assert (texts(repository), repository.latest) == (before, change)
                    with opened(tmp_path, read_only=True) as reader:
                        assert texts(reader) == before
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            add(repository, *more)  # there is room again
            assert len(repository) == 1 + 20 * round_
            assert repository.verify() == []
    assert refused > 3
    with opened(tmp_path) as repository:
        assert repository.verify() == []
        for one in repository.list(limit=5):
            np.testing.assert_array_equal(standing_keys(repository)[one.number], key_of(one.edit))


def test_no_space_for_keys_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    with opened(tmp_path) as repository:
        add(repository, edit(1))
        size = (tmp_path / "keys-1.bin").stat().st_size

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            with pytest.raises(RepositoryError, match=r"no space for .*nothing was acknowledged"):
                add(repository, *map(edit, range(2, 300)))
        assert (tmp_path / "keys-1.bin").stat().st_size == size
        assert add(repository, edit(2)).counts.written == 1


# several processes

WRITER = """
import sys
import numpy as np
from kedit.editing.edits import Edit
from kedit.recipe.repository import Repository
folder, size = sys.argv[1], int(sys.argv[2])
with Repository.open(folder, encoder="abc", key_width=4) as repository:
    first = repository.keys()[0].shape[0]
    while first < 100_000:
        edits = [Edit("", f"p{n}", f"t{n}") for n in range(first, first + size)]
        repository.add(edits, np.array([[n + 1, 1, 2, 3] for n in range(first, first + size)], dtype=float))
        first += size
        print(first, flush=True)
"""


def start_writer(folder: Path, size: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(size)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def check_after_crash(folder: Path, acknowledged: int, size: int) -> None:
    with opened(folder) as repository:
        assert repository.verify() == []
        count = len(repository)
        assert count >= acknowledged
        assert count % size == 0  # a batch is there whole or not at all
        for numbers, keys in repository.key_blocks():
            assert keys[:, 0].tolist() == numbers.tolist()
        assert [one.edit.prompt for one in repository.list(limit=count)] == [f"p{n}" for n in range(count)]


@pytest.mark.parametrize("size", [1, 7])
def test_acknowledged_edits_survive_kills(tmp_path, size):
    chance = np.random.default_rng(size)
    acknowledged = 0
    for _ in range(2):
        writer = start_writer(tmp_path, size)
        assert writer.stdout is not None
        acknowledged = int(writer.stdout.readline())
        time.sleep(chance.uniform(0, 0.2))
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].splitlines()
        acknowledged = int(rest[-1]) if rest else acknowledged
        check_after_crash(tmp_path, acknowledged, size)
    assert acknowledged > 0


def test_readers_see_whole_batches_beside_a_writer_and_a_second_writer_is_refused(tmp_path):
    opened(tmp_path).close()
    writer = start_writer(tmp_path, 10)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(RepositoryError, match=r"another process writes to .*read_only=True"):
            opened(tmp_path)
        with opened(tmp_path, read_only=True) as one, opened(tmp_path, read_only=True) as other:
            seen = set()
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                for reader in (one, other):
                    numbers = np.concatenate([numbers for numbers, _ in reader.key_blocks()])
                    assert len(numbers) % 10 == 0
                    seen.add(len(numbers))
                    moved = reader.moved(reader.latest - 1)
                    assert len(moved.added) % 10 == 0
            assert len(seen) > 2
    finally:
        writer.kill()
        writer.communicate()


# file systems


def test_network_file_systems_are_refused_or_get_another_log(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /far\\040away rw shared:1 - nfs4 host:/x rw\n"
        "3 1 0:3 / /far\\040away/near rw - xfs /dev/b rw\n4 1 0:4 / / rw - overlay none rw\n"
    )
    kinds = [tables.file_system(Path(path), mounts) for path in ("/a", "/far away/b", "/far away/near/b", "/far")]
    assert kinds == ["overlay", "nfs4", "xfs", "overlay"]
    assert tables.file_system(Path("/a"), tmp_path / "none") == ""
    monkeypatch.setattr("kedit.recipe.repository.file_system", lambda folder: "lustre")
    with pytest.raises(RepositoryError, match=r"network file system \(lustre\).*network=True"):
        opened(tmp_path / "edits")
    with opened(tmp_path / "edits", network=True) as repository:
        add(repository, edit(1))
        assert not (tmp_path / "edits" / f"{tables.DATABASE}-wal").exists()
    with opened(tmp_path / "edits", read_only=True) as repository:
        assert len(repository) == 1


# against a dict


class AgainstDict(RuleBasedStateMachine):
    """Every state of the repository is that of a list of dicts, whatever is done to it."""

    @initialize()
    def start(self):
        import tempfile

        self.home = tempfile.TemporaryDirectory()
        self.repository = opened(Path(self.home.name))
        self.states: list[dict[str, tuple[int, str]]] = [{}]  # prompt -> (number, target), after each change
        self.written = 0

    @rule(pairs=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc")), min_size=1, max_size=4))
    def add(self, pairs):
        state, known = dict(self.states[-1]), 0
        written = self.written
        for number, target in pairs:
            prompt = edit(number).prompt
            if state.get(prompt, (0, ""))[1] == target:
                known += 1
                continue
            self.written += 1
            state[prompt] = (self.written, target)
        added = add(self.repository, *(edit(number, target) for number, target in pairs))
        assert added.counts.known == known
        if self.written > written:
            self.states.append(state)

    @rule(which=st.integers(0, 5))
    def forget(self, which):
        state = dict(self.states[-1])
        if edit(which).prompt in state:
            number, _ = state.pop(edit(which).prompt)
            self.repository.forget(self.repository.numbered([number])[0].id)
            self.states.append(state)

    @rule(share=st.floats(0, 1))
    def roll_back(self, share):
        number = round(share * (len(self.states) - 1))
        self.repository.roll_back(number)
        self.states.append(self.states[number])

    @rule()
    def snapshot(self):
        assert self.repository.snapshot("x") == len(self.states)
        self.states.append(self.states[-1])

    @rule()
    def reopen(self):
        self.repository.close()
        self.repository = opened(Path(self.home.name))

    @rule()
    def encode_again(self):
        self.repository.reencode("abc", keys_of, batch=3)
        self.states.append(self.states[-1])

    @rule(share=st.floats(0, 1))
    def any_earlier_state_can_be_told(self, share):
        number = round(share * (len(self.states) - 1))
        found = {one.edit.prompt: (one.number, one.edit.target) for one in self.repository.list(at=number)}
        assert found == self.states[number]
        assert self.repository.count(at=number) == len(found)

    @invariant()
    def stands_what_should(self):
        state = self.states[-1]
        standing = self.repository.list()
        assert {one.edit.prompt: (one.number, one.edit.target) for one in standing} == state
        assert len(self.repository) == len(state)
        assert self.repository.latest == len(self.states) - 1
        keys = standing_keys(self.repository)
        assert {one.number for one in standing} == keys.keys()
        assert all((keys[one.number] == key_of(one.edit)).all() for one in standing)

    def teardown(self):
        if hasattr(self, "repository"):
            assert self.repository.verify() == []
            self.repository.close()
            self.home.cleanup()


TestAgainstDict = AgainstDict.TestCase
TestAgainstDict.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)
