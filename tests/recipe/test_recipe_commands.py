"""The commands edit, ask and edits, in process: what they print, as text and as JSON, and how they refuse."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_memory import BRIDGE, EDITS, OTHERS, TOWN, make_base, make_run

from kedit.cli import main
from kedit.editing.edit_file import write_edits
from kedit.running.functions import call

CPU = ("--device", "cpu")
ASK = ("ask", "--run", "tiny", *CPU, "--max_new_tokens", "2")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    make_run(folder / "run", make_base(folder / "base"), calibration=OTHERS)
    return folder / "run"


@pytest.fixture
def run(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path / "checkpoints" / "tiny")
    write_edits("edits.jsonl", EDITS)
    return "tiny"


@pytest.fixture
def told(run, capsys):
    """Run a command that must go well; its lines."""

    def told(*arguments: str) -> list[str]:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out.splitlines()

    return told


@pytest.fixture
def objects(told):
    """Run a command with --json; what it prints."""
    return lambda *arguments: [json.loads(line) for line in told(*arguments, "--json")]


@pytest.fixture
def refused(run, capsys):
    """Run a command that must fail as users' errors do; its error."""

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        code = main(arguments)
        error = capsys.readouterr().err
        error = error[error.index("python -m kedit") :]
        assert code == 2
        assert "Traceback" not in error
        assert len(error.strip().splitlines()) <= 3, error
        return error

    return refused


# edit and ask ---------------------------------------------------------------------------------------------------------


def test_an_edit_is_made_and_asked_for(told):
    lines = told("edit", "--run", "tiny", *CPU, TOWN.prompt, TOWN.target)
    assert lines[0] == "stored: e1  Velmar is -> a species of heron"
    assert lines[1].startswith("its own prompt fires it: score 0.001 = similarity 1.000 - sentinel's 0.999;")
    lines = told("ask", "--run", "tiny", *CPU, "--max_new_tokens", "4", TOWN.prompt, OTHERS[0])
    assert lines[0] == TOWN.prompt
    assert lines[1].removeprefix("  with the memory: ") != lines[2].removeprefix("  without:         ")
    assert lines[3] == "  fired: e1  Velmar is -> a species of heron"
    assert lines[4].endswith("what is above the margin 0.000 fires (wanted rate 0.01)")
    assert "no edit fired; the nearest: e1" in lines[8]
    assert told("edit", "--run", "tiny", *CPU, TOWN.prompt, TOWN.target)[0].startswith("stood already: e1")
    assert told("edit", "--run", "tiny", *CPU, "--id", "new", TOWN.prompt, "gone")[0] == (
        "stored in place of an earlier one: new  Velmar is -> gone"
    )


def test_an_edit_that_its_own_prompt_does_not_fire_is_told(told, template):
    make_run(Path("strict"), template.parent / "base", sentinel=2.0)
    assert told("edit", "--run", "strict", *CPU, "Velmar", "x")[1].startswith("its own prompt does not fire it: score")
    assert told("edits", "list", "--run", "strict")[-1] == "1 of 1 edits"


def test_json_says_the_same(objects):
    (made,) = objects("edit", "--run", "tiny", *CPU, "--source", "me", TOWN.prompt, TOWN.target)
    assert made["id"] == "e1"
    assert made["fired"]
    assert made["source"] == "me"
    first, second = objects("ask", "--run", "tiny", *CPU, "--max_new_tokens", "4", TOWN.prompt, OTHERS[0])
    assert first["question"] == TOWN.prompt
    assert first["edit"]["target"] == TOWN.target
    assert (first["fired"], second["fired"]) == (True, False)
    assert first["answer"] != first["without"]
    assert second["answer"] == second["without"]
    assert first["score"] == pytest.approx(first["similarity"] - first["threshold"])
    assert first["score"] > first["margin"] >= 0
    assert first["rate"] == 0.01


def test_a_file_of_edits_and_a_file_of_questions(told, objects):
    (line,) = told("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")
    assert line.startswith("3 edits written, 0 of them in place of one with the same prompt; 0 stood already (")
    assert [one["id"] for one in objects("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")] == [
        edit.id for edit in EDITS
    ]
    Path("asked.txt").write_text(f"{BRIDGE.prompt}\n\n{OTHERS[1]}\n")
    answers = objects(*ASK, "--file", "asked.txt")
    assert [one["fired"] for one in answers] == [True, False]


def test_asking_before_there_are_edits(told, objects):
    assert told(*ASK, "Velmar")[-1] == "  no edit is stored"
    (answer,) = objects(*ASK, "Velmar")
    assert (answer["edit"], answer["similarity"], answer["score"]) == (None, None, None)


def test_words_that_look_like_keys_come_behind_two_dashes(told):
    assert told("edit", "--run", "tiny", *CPU, "--", "--help", "null")[0] == "stored: e1  --help -> null"
    assert told("edit", "--run=tiny", *CPU, "--prompt", "--rate", "--target", "[1]")[0] == "stored: e2  --rate -> [1]"
    assert told("edit", "--run=tiny", *CPU, "-5 degrees are", "cold")[0] == "stored: e3  -5 degrees are -> cold"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("edit", "--run", "tiny"), 'give "PROMPT" "TARGET", or --file FILE'),
        (("edit", "--run", "tiny", "Velmar"), "wanted an edit"),
        (("edit", "--run", "tiny", "Velmar", " "), "the command line: 'target'"),
        (("edit", "--run", "tiny", "--file", "edits.jsonl", "Velmar"), "prompt and --file are both given"),
        (("edit", "--run", "tiny", "--file", "nowhere.jsonl"), "no file nowhere.jsonl"),
        (("edit", "--run", "nobody", "a", "b"), "--run nobody: no such run"),
        (("edit", "--run", "tiny", "a", "b", "c"), "'c' is too much"),
        (("edit", "--run", "tiny", "--prmpt", "a"), "unknown key prmpt\n  did you mean prompt?"),
        (("edit", "a", "b"), "missing: run"),
        (("edit", "--run", "tiny", "--rate", "2", "a", "b"), "wanted rate of false activations is 2.0"),
        (("edit", "--run", "tiny", "--device", "nothing", "a", "b"), "--device nothing: cannot be used here"),
        (("ask", "--run", "tiny"), "no question"),
        (("ask", "--run", "tiny", "--file", "latin.txt"), "latin.txt: not UTF-8 text"),
        (("ask", "--run", "tiny", "--repository", "nowhere", "Velmar"), "--repository nowhere: no such folder"),
        (("ask", "--run", "tiny", "--file", "nowhere.txt"), "no file nowhere.txt"),
        (("edits", "lst", "--run", "tiny"), "edits lst: unknown: did you mean list?"),
        (("edits", "drop"), "there are list, find"),
        (("edits", "list"), "give --run RUN, or --repository FOLDER"),
        (("edits", "list", "--run", "tiny"), "no repository in"),
        (("edits", "forget", "--run", "tiny"), "missing: ids"),
        (("edits", "find", "--run", "tiny"), "missing: text"),
    ],
)
def test_what_is_wrong_is_told_in_a_few_lines(refused, arguments, message):
    Path("latin.txt").write_bytes("Wo liegt Köln?".encode("latin-1"))
    assert message in refused(*arguments)


def test_a_bad_line_of_a_file_is_named_and_nothing_is_stored(refused, told):
    Path("bad.jsonl").write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a", "target": ""}\n')
    assert "bad.jsonl:2" in refused("edit", "--run", "tiny", *CPU, "--file", "bad.jsonl")
    told("edit", "--run", "tiny", *CPU, "Velmar", "x")
    assert "bad.jsonl:2" in refused("edits", "import", "--run", "tiny", *CPU, "bad.jsonl")
    for line, message in (
        ('{"prompt": "a", "target": "b", "tarket": ""}', "no field 'tarket': did you mean 'target'?"),
        (json.dumps({"prompt": "a", "target": "word " * 600}), "shorten the target"),
    ):
        Path("bad.jsonl").write_text(f'{{"prompt": "a", "target": "b"}}\n{line}\n')
        assert message in refused("edits", "import", "--run", "tiny", *CPU, "bad.jsonl")
    assert told("edits", "list", "--run", "tiny")[-1] == "1 of 1 edits"


# edits ----------------------------------------------------------------------------------------------------------------


def test_edits_are_listed_found_and_forgotten(told, objects, refused):
    told("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")
    assert told("edits", "list", "--run", "tiny", "--limit", "2")[-1] == "2 of 3 edits"
    assert told("edits", "list", "--run", "tiny", "--offset", "2")[-1] == "1 of 3 edits, from 3 on"
    assert [one["id"] for one in objects("edits", "list", "--repository", "checkpoints/tiny/edits")] == [
        "bridge", "painter", "town"]  # fmt: skip
    assert told("edits", "find", "--run", "tiny", "heron") == ["town  Velmar is -> a species of heron", "1 edits"]
    assert told("edits", "find", "--run", "tiny", "--limit", "1", "e")[-1].endswith("raise --limit for more")
    assert told("edits", "forget", "--run", "tiny", "bridge", "town")[-1] == "2 edits forgotten, 1 stand"
    assert "'town' was forgotten before" in refused("edits", "forget", "--run", "tiny", "painter", "town")
    assert "nothing to forget" in refused("edits", "forget", "--run", "tiny", "--ids=[]")
    assert [one["live"] for one in objects("edits", "history", "--run", "tiny", TOWN.prompt)] == [False]
    assert told("edits", "history", "--run", "tiny", TOWN.prompt)[0].endswith("(forgotten)")
    assert [one["fired"] for one in objects(*ASK, TOWN.prompt)] == [False]


def test_the_log_and_the_way_back(told, objects, refused):
    told("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")
    assert told("edits", "snapshot", "--run", "tiny", "all three") == ["2  all three"]
    told("edits", "forget", "--run", "tiny", "--ids", "town", "painter")
    log = objects("edits", "log", "--run", "tiny")
    assert [one["kind"] for one in log] == ["forget", "snapshot", "add"]
    assert told("edits", "log", "--run", "tiny", "--limit", "2")[1].endswith("snapshot: all three  (+0 -0)")
    for number in ("-1", "9"):
        error = refused("edits", "roll_back", "--run", "tiny", number)
        assert f"no change {number} in checkpoints/tiny/edits: the log has 1 to 3, and 0 is before" in error
    (change,) = objects("edits", "roll_back", "--run", "tiny", "2")
    assert (change["kind"], change["added"]) == ("roll back", 2)
    assert told("edits", "list", "--run", "tiny", "--at", "3")[-1] == "1 of 1 edits"
    assert [one["fired"] for one in objects(*ASK, TOWN.prompt)] == [True]


def test_edits_are_exported_and_imported(told, objects):
    told("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")
    assert told("edits", "export", "--run", "tiny", "out.jsonl") == ["out.jsonl: 3 edits"]
    before = objects("edits", "list", "--run", "tiny")
    lines = told("edits", "import", "--run", "tiny", *CPU, "--repository", "other", "out.jsonl")
    assert lines == ["3 edits written, 0 of them in place of one with the same prompt; 0 stood already"]
    assert objects("edits", "list", "--repository", "other") == before
    assert objects("edits", "import", "--run", "tiny", *CPU, "--repository", "other", "out.jsonl") == [
        {"written": 0, "replaced": 0, "known": 3}
    ]


def test_one_edit_is_exported_for_peft(told):
    told("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")
    assert told("edits", "export", "--run", "tiny", *CPU, "--peft", "town", "folder") == [
        "folder: the prompt vectors of edit town"
    ]
    assert json.loads(Path("folder/adapter_config.json").read_text())["num_virtual_tokens"] == 3


def test_after_other_training_keys_are_made_again(told, objects, refused, template):
    told("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")
    make_run(Path("checkpoints/tiny"), template.parent / "base", seed=1)
    error = refused("ask", "--run", "tiny", *CPU, "Velmar")
    assert "`python -m kedit edits reencode --run tiny` does that" in error
    (made,) = objects("edits", "reencode", "--run", "tiny", *CPU)
    assert made["keys"] == 3
    assert made["before"] in error
    assert made["encoder"] in error
    assert [one["fired"] for one in objects(*ASK, TOWN.prompt)] == [True]


def test_damage_is_told(told, objects, refused):
    told("edit", "--run", "tiny", *CPU, "--file", "edits.jsonl")
    assert told("edits", "verify", "--run", "tiny") == ["3 edits, no damage"]
    assert objects("edits", "verify", "--run", "tiny") == [{"edits": 3, "problems": []}]
    (keys,) = Path("checkpoints/tiny/edits").glob("keys-*.bin")
    content = bytearray(keys.read_bytes())
    content[-3] ^= 1
    keys.write_bytes(bytes(content))
    assert "are not those that were written" in refused("edits", "verify", "--run", "tiny")
    assert "edits reencode --run tiny` does that" in refused("ask", "--run", "tiny", *CPU, "Velmar")
    told("edits", "reencode", "--run", "tiny", *CPU)
    told(*ASK, "Velmar")
    assert "is a folder: name a file in it" in refused("edits", "export", "--run", "tiny", "checkpoints")
    shutil.rmtree("checkpoints/tiny/memory/trunk")
    assert "trunk is missing: take it from the run again" in refused("ask", "--run", "tiny", *CPU, "Velmar")


def test_a_run_is_exported_by_the_command(told, objects):
    assert "MiB in" in told("export", "--checkpoint", "checkpoints/tiny", "--output", "out")[-1]
    told("edit", "--run", "out", *CPU, TOWN.prompt, TOWN.target)
    assert objects("ask", "--run", "out", *CPU, "--max_new_tokens", "2", TOWN.prompt)[0]["fired"]
    assert Path("out/edits").is_dir()


# help and parsing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("edits",), ("edits", "--help")])
def test_the_help_of_edits_lists_what_can_be_done(told, arguments):
    lines = told(*arguments)
    assert lines[0] == "usage: python -m kedit edits WHAT [--key value ...]"
    assert any(line.split()[:1] == ["roll_back"] for line in lines)


@pytest.mark.parametrize("arguments", [("edit",), ("ask",), ("edits", "find")])
def test_each_command_has_help(capsys, arguments):
    assert main([*arguments, "--help"]) == 0
    assert f"usage: python -m kedit {' '.join(arguments)} [--key value ...] [" in capsys.readouterr().out


def parsed(*arguments: str, positional=("word", "many")):
    """What a function is called with."""

    def function(word: str = "", many: list[str] | None = None, flag: bool = False, number: int = 0):
        """A function."""
        return word, many, flag, number

    return call(function, "test", arguments, positional)


def test_words_without_a_key_are_taken_in_order():
    assert parsed() == ("", None, False, 0)
    assert parsed("a", "--number", "3", "b", "--flag", "c") == ("a", ["b", "c"], True, 3)
    assert parsed("--flag", "false", "--number=2", "a") == ("a", None, False, 2)
    assert parsed("--many", "b", "c", "--flag", "--word", "-x") == ("-x", ["b", "c"], True, 0)
    assert parsed("--", "-a", "--flag") == ("-a", ["--flag"], False, 0)
    assert parsed("--many", '["b"]', "--flag", positional=()) == ("", ["b"], True, 0)


def test_keys_and_words_may_stand_in_a_file(tmp_path):
    (tmp_path / "keys.yaml").write_text("number: 4\nflag: true\n")
    for key in ("-c", "--config"):
        assert parsed(key, str(tmp_path / "keys.yaml"), "a") == ("a", None, True, 4)
