"""What the README says can be done can be done."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from kedit.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.strip().split("\n")]


def test_the_two_commands_are_what_ci_runs():
    commands = [line for line in README.split("\n") if line.startswith("python3 -m venv ")]
    assert len(commands) == 2
    assert commands[0].endswith("&& python -m kedit fit --config configs/quickstart.yaml")
    assert commands[1].endswith("&& pytest")
    ci = (ROOT / ".ci" / "run").read_text()
    assert "grep '^python3 -m venv ' README.md" in ci
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0


@pytest.mark.parametrize("line", [line for line in LINES if "kedit" in line and "venv" not in line])
def test_every_command_names_what_exists(line):
    words = shlex.split(line)
    command = words[words.index("kedit") + 1]
    assert command in COMMANDS
    for path in (word for word in words if word.startswith("configs/")):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("line", [line for line in LINES if " fit " in line and "venv" not in line])
def test_every_fit_command_parses(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = shlex.split(line)
    assert main([*words[words.index("fit") :], "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"] in (
        "kedit.kilm.KilmModule",
        "kedit.distill.DistillModule",
    )


def test_every_configuration_is_in_the_table():
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"| `{path.name}` |" in README


def test_the_tree_names_what_exists():
    tree = README.split("## The tree")[1]
    for folder, names in re.findall(r"^  (\w+)/ +.*\n((?:    .*\n)*)", tree, re.MULTILINE):
        assert (ROOT / "kedit" / folder).is_dir(), folder
        for name in re.findall(r"\b\w+\.py\b", names):
            assert (ROOT / "kedit" / folder / name).is_file(), f"{folder}/{name}"
