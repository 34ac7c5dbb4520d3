"""What a corpus is built from, what is done already, and where: the folder of a build that can be interrupted."""

import copy
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from kedit.editing.sources import DataError
from kedit.kilm.articles import counts_of, partial, settle
from kedit.kilm.corpus import FORMAT
from kedit.kilm.infilling import markup
from kedit.kilm.titles import check_descriptions, resolve, write_descriptions
from kedit.kilm.wikipedia import Part, split
from kedit.kilm.wikitext import Setting
from kedit.lm import backbones
from kedit.lm.text import fingerprint

PART_BYTES = 16 << 20  # stored bytes of one part
BLOCK = 1 << 24  # bytes copied at a time


class Plan:
    """What a build is made of, and the places of its intermediate results in the output folder."""

    def __init__(
        self,
        dump: list[Path],
        tokenizer: str,
        output: Path,
        setting: Setting,
        chunk_tokens: int,
        descriptions: Path | None,
    ) -> None:
        self.dump, self.output, self.table = dump, output, Path(descriptions) if descriptions else None
        for path in [*dump, *([self.table] if self.table else [])]:
            if path.is_dir():
                raise DataError(f"{path} is a folder: give the files in it, one by one or as {path}/*")
            if not path.is_file():
                raise DataError(f"{path}: no such file: give the dump's files after --dump (see --help)")
        if not dump:
            raise DataError("no dump given: name at least one file after --dump")
        if len({path.resolve() for path in dump}) < len(dump):
            raise DataError("--dump names the same file twice")
        self.tokenizer = load_tokenizer(tokenizer)
        self._parts: list[Part] | None = None
        self.settings: dict[str, Any] = {
            "format": FORMAT,
            "setting": setting,
            "chunk_tokens": chunk_tokens,
            "part_bytes": PART_BYTES,
            "tokenizer": {
                "name": tokenizer,
                "fingerprint": fingerprint(self.tokenizer),
                "size": len(self.tokenizer),
                "class": type(self.tokenizer).__name__,
            },
        }

    def parsed(self, part: int) -> Path:
        """Named by what was read, so that it stays right when another file of the dump is replaced."""
        read = self.parts()[part]
        digest = self.settings["sources"][self.dump.index(read.path)]["sha256"]
        return self.output / "parsed" / f"{digest[:16]}-{read.start:013d}.parquet"

    def units(self, part: int) -> Path:
        return self.output / "units" / f"{part:05d}"

    def parts(self) -> list[Part]:
        if self._parts is None:
            self._parts = [
                part
                for path in self.dump
                for part in (
                    [Part(path, 0, path.stat().st_size)] if path.suffix == ".parquet" else split(path, PART_BYTES)
                )
            ]
        return self._parts

    def enter(self) -> None:
        """Make the output folder.

        Raises:
            DataError: it holds something else.
        """
        if self.output.exists() and not self.output.is_dir():
            raise DataError(f"--output {self.output} is a file: choose a folder")
        self.output.mkdir(parents=True, exist_ok=True)
        if not (self.output / "build.json").exists() and not all(map(_left_over, self.output.iterdir())):
            raise DataError(f"--output {self.output} is not empty and holds no corpus: choose another folder")

    def sweep(self) -> None:
        """Remove what killed builds left, and the parts of files that were replaced since. Only under the lock."""
        for beside in self.output.glob("**/*.partial"):
            shutil.rmtree(beside, ignore_errors=True) if beside.is_dir() else beside.unlink(missing_ok=True)
        if "sources" in self.settings:
            wanted = {self.parsed(i) for i in range(len(self.parts()))}
            for path in set((self.output / "parsed").iterdir()) - wanted:
                path.unlink()

    def claim(self) -> dict[str, Any] | None:
        """Take the output folder, or go on in it; the manifest where the corpus stands already.

        Where it does not stand yet, sources and descriptions may be others than before: what came of them is made anew.

        Raises:
            DataError: the folder holds something else, or a corpus of other settings; the tokenizer or the table of
                descriptions is not usable.
        """
        self.enter()
        try:
            markup(copy.deepcopy(self.tokenizer))  # adds its tokens, which the corpus' tokenizer stays without
        except ValueError as error:
            raise DataError(f"--tokenizer {self.settings['tokenizer']['name']}: {error}") from None
        place, manifest = self.output / "build.json", self.output / "manifest.json"
        known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
        self._compare(known)
        sources = _hashed(self.dump, known.get("sources", []))
        table = _hashed([self.table], known.get("descriptions") or []) if self.table else None
        for name, new in (("sources", sources), ("descriptions", table)):
            old = known.get(name, new)
            if [(s["bytes"], s["sha256"]) for s in old or []] != [(s["bytes"], s["sha256"]) for s in new or []]:
                if manifest.exists():
                    raise self._other(name, _names(old), _names(new))
                note = f"the unfinished build in {self.output} had {name} {_names(old)}, now they are {_names(new)}"
                print(f"{note}: going on, and what came of the old ones is made anew", file=sys.stderr)
        self.settings |= {"sources": sources, "descriptions": table}
        if manifest.exists():
            self.clear()
            return cast(dict[str, Any], json.loads(manifest.read_text()))
        if self.table and not (self.output / "titles").exists():
            check_descriptions(self.table)
        # first of all: by it a folder is known to be ours
        write_json(place, self.settings)
        for folder in ("parsed", "units"):
            (self.output / folder).mkdir(exist_ok=True)
        if not (self.output / "tokenizer").exists():
            beside = partial(self.output / "tokenizer")
            shutil.rmtree(beside, ignore_errors=True)
            # whether the hub was reachable is no property of a tokenizer
            self.tokenizer.init_kwargs.pop("local_files_only", None)
            self.tokenizer.save_pretrained(beside)
            settle(beside, self.output / "tokenizer")
        return None

    def resume(self) -> None:
        """Take up the settings that `claim` wrote, without looking at the sources again."""
        self.settings = json.loads((self.output / "build.json").read_text())

    def _compare(self, known: dict[str, Any]) -> None:
        for name, new in self.settings.items():
            old = known.get(name, new)
            if name == "tokenizer" and old["fingerprint"] != new["fingerprint"]:
                shown = [f"{t['name']} ({t['fingerprint']})" for t in (old, new)]
                raise self._other(name, *shown)
            if name != "tokenizer" and old != new:
                raise self._other(name, str(old), str(new))

    def _other(self, name: str, old: str, new: str) -> DataError:
        return DataError(
            f"--output {self.output} holds a corpus with {name} {old}, asked for is {new}: choose another folder or "
            "remove this one"
        )

    def titles(self, parts: int) -> list[int]:
        """Number the entities, once; the first entity of each part.

        Raises:
            DataError: there are none.
        """
        folder = self.output / "titles"
        made_of = {
            "parsed": [self.parsed(i).name for i in range(parts)],
            "descriptions": [table["sha256"] for table in self.settings["descriptions"] or []],
        }
        if folder.exists() and json.loads((folder / "counts.json").read_text()).get("made_of") != made_of:
            # units first: where they hang on other titles, titles say so
            shutil.rmtree(self.output / "units")
            (self.output / "units").mkdir()
            shutil.rmtree(folder)
        if not folder.exists():
            self._check_articles(parts)
            titles, sizes, redirects = resolve([self.parsed(i) for i in range(parts)])
            beside = partial(folder)
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            titles.save(beside)
            if self.table:
                write_descriptions(self.table, titles, beside / "descriptions")
            counts = {"made_of": made_of, "sizes": sizes, "redirects": redirects}
            (beside / "counts.json").write_text(json.dumps(counts))
            settle(beside, folder)
        sizes = json.loads((folder / "counts.json").read_text())["sizes"]
        return [sum(sizes[:i]) for i in range(parts)]

    def _check_articles(self, parts: int) -> None:
        found: dict[Path, Counter[str]] = {path: Counter() for path in self.dump}
        for i in range(parts):
            found[self.parts()[i].path].update(counts_of(self.parsed(i))["pages"])
        for path, pages in found.items():
            if not pages.total():
                raise DataError(f"{path} holds no pages: download it again, or leave it out of --dump")
        if not sum(pages["article"] for pages in found.values()):
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(sum(found.values(), Counter()).items()))
            raise DataError(
                f"no article with text in {', '.join(map(str, self.dump))}, only {kinds}: wanted a dump of articles "
                "(pages-articles)"
            )

    def clear(self) -> None:
        """Remove the intermediate results of a finished build."""
        for name in ("parsed", "units", "titles"):
            shutil.rmtree(self.output / name, ignore_errors=True)

    def no_space(self, error: Exception) -> DataError:
        for beside in self.output.glob("**/*.partial"):
            shutil.rmtree(beside, ignore_errors=True) if beside.is_dir() else beside.unlink()
        parts = self.parts()
        total = sum(part.end - part.start for part in parts)
        known = parts if "sources" in self.settings else []
        read = sum(part.end - part.start for i, part in enumerate(known) if self.parsed(i).exists())
        used = sum(path.stat().st_size for path in self.output.glob("**/*") if path.is_file())
        # parsed text and arrays come to about twice the parsed text; before anything is parsed, to about the dump
        needed = max(2 * used * total // read - used if read else total, 1 << 20)
        place = self.output if self.output.exists() else self.output.absolute().parent
        free = shutil.disk_usage(place).free
        return DataError(
            f"no space left in {self.output} ({error}): about {needed >> 20:,} MB more are needed, {free >> 20:,} MB "
            "are free (a quota or `ulimit -f` may allow less). What was finished is kept: make room and run the same "
            "command again"
        )


def _left_over(path: Path) -> bool:
    """Whether a build that was killed before it wrote build.json may have left this."""
    if path.is_dir() and not path.is_symlink():
        return path.name in ("parsed", "units") and not any(path.iterdir())
    return path.name == "lock" or (path.name.startswith("build.json.") and path.suffix == ".partial")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or the hub.

    Raises:
        DataError: there is none.
    """
    try:
        loaded = backbones.load_tokenizer(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"--tokenizer {name}: no tokenizer loads from there ({str(error).splitlines()[0]})") from None
    if not loaded.is_fast:
        raise DataError(f"--tokenizer {name}: {type(loaded).__name__} gives no character offsets: a fast one is wanted")
    return loaded


def _hashed(paths: Sequence[Path], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Size and sha256 of files; not read again where size and time are those of `known`."""
    before = {(s["file"], s["bytes"], s["time"]): s["sha256"] for s in known}
    found = []
    for path in paths:
        status = path.stat()
        entry = {"file": str(path.resolve()), "bytes": status.st_size, "time": status.st_mtime_ns}
        digest = before.get((entry["file"], entry["bytes"], entry["time"]))
        if digest is None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(entry | {"sha256": digest})
    return found


def _names(sources: list[dict[str, Any]] | None) -> str:
    return ", ".join(f"{Path(s['file']).name} (sha256 {s['sha256'][:12]})" for s in sources or []) or "none"


def write_json(path: Path, content: Any) -> None:
    beside = partial(path)
    beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    settle(beside, path)
