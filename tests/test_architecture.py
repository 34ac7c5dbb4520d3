"""The arrows between packages: who may import whom."""

import ast
from pathlib import Path

import pytest

import kedit

ROOT = Path(kedit.__file__).parent
METHODS = {"kilm", "recipe", "distill"}
MAY_IMPORT = {  # beside itself and what lies outside kedit
    "lm": set(),
    "editing": {"lm"},
    "running": {"editing", "lm"},
    "benchmarks": {"editing", "lm"},
    "world": {"editing", "lm"},
    **{method: {"editing", "lm", "running"} for method in METHODS},
    "checking": METHODS | {"comparing", "contestants", "editing", "lm", "running", "benchmarks", "world"},
    "comparing": {"editing", "lm", "running"},
    "contestants": METHODS | {"comparing", "editing", "lm", "running"},
    "cli": METHODS | {"checking", "comparing", "contestants"} | {"editing", "lm", "running", "benchmarks", "world"},
    "__main__": {"cli"},
    "__init__": set(),
}


def imports(path: Path) -> set[str]:
    """Parts of kedit that a file imports, at its top or inside a function."""
    package = path.relative_to(ROOT.parent).parent.parts
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            names += [f"{base}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "kedit" and len(part) > 1}


def home(path: Path) -> str:
    inside = path.relative_to(ROOT).parts
    return inside[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_package_may(path):
    part = home(path)
    assert part in MAY_IMPORT, f"new package {part}: give it a line in MAY_IMPORT"
    known = imports(path) & (MAY_IMPORT.keys() | {"__main__"})
    assert known <= MAY_IMPORT[part] | {part}


def test_the_arrows_are_seen_in_every_way_of_importing():
    source = ROOT / "lm" / "made_up.py"
    lines = ["import kedit.kilm.data", "from kedit.world import facts", "def f():", "  from ..editing import x"]
    text = "\n".join([*lines, "  from kedit import running"])

    class Made(type(source)):  # a path whose text is given
        def read_text(self, **_):
            return text

    assert imports(Made(source)) == {"kilm", "world", "editing", "running"}


def test_only_contestants_the_command_line_and_checks_import_methods():
    readers = {"cli", "checking"}  # the command line, and the readers of all files behind its command `check`
    known = [(home(path), imports(path)) for path in ROOT.rglob("*.py")]
    assert {part for part, parts in known if parts & METHODS - {part}} <= readers | {"contestants"}
    assert {part for part, parts in known if "checking" in parts} <= readers
    assert {part for part, parts in known if "contestants" in parts} <= readers | {"contestants"}
