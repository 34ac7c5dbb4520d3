"""What the README says can be done can be done."""

import ast
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from kedit.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
METHODS = [path.read_text() for path in sorted((ROOT / "kedit").glob("*/README.md"))]
BLOCKS = [block for text in (README, *METHODS) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
LINES = [line for block in BLOCKS for line in block.strip().split("\n")]
EXAMPLES = [block for text in (README, *METHODS) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
FUNCTIONS = ("corpus", "transfer", "export", "edit", "ask", "edits", "check", "compare")
"""Commands that are no training."""


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
        "kedit.recipe.RecipeModule",
    )


def chosen(line: str) -> list[str]:
    """The words of a line behind `kedit`, without a comment."""
    words = shlex.split(line, comments=True)
    return words[words.index("kedit") + 1 :] if "kedit" in words else []


@pytest.mark.parametrize("line", [line for line in LINES if chosen(line)[:1] and chosen(line)[0] in FUNCTIONS])
def test_every_option_shown_is_one(line, capsys):
    words = chosen(line)
    assert main([*words[: 1 + (words[0] == "edits")], "--help"]) == 0
    told = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option.split('.')[0]}\b", told), option


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b(?:Kilm|Distill|Recipe)(?:Module|Data)\b", README))))
def test_every_class_named_has_its_help(name, capsys):
    assert main(["fit", f"--{'model' if name.endswith('Module') else 'data'}.help", name]) == 0
    assert "Help for" in capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_in_python_names_what_exists(example):
    tree, kinds, made = ast.parse(example), {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            home = importlib.import_module(node.module)
            kinds |= {alias.name: getattr(home, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            root = node.value.func.value if isinstance(node.value.func, ast.Attribute) else node.value.func
            if isinstance(root, ast.Name) and root.id in kinds:
                made[node.targets[0].id] = kinds[root.id]
    assert made
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            kind = (made | kinds).get(node.value.id)
            assert kind is None or hasattr(kind, node.attr), f"{node.value.id}.{node.attr}"


def test_every_configuration_is_in_the_table():
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"| `{path.name}` |" in README


def test_the_tree_names_what_exists():
    tree = README.split("## The tree")[1]
    for folder, names in re.findall(r"^  (\w+)/ +.*\n((?:    .*\n)*)", tree, re.MULTILINE):
        assert (ROOT / "kedit" / folder).is_dir(), folder
        for name in re.findall(r"\b\w+\.py\b", names):
            assert (ROOT / "kedit" / folder / name).is_file(), f"{folder}/{name}"
