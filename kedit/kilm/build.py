"""From dumps to a corpus: which parts there are, what is done already, and the last step that joins them.

Every step writes its result beside and renames it, so a run that was killed goes on where it stopped.
"""

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

import kedit
from kedit.editing.sources import DataError
from kedit.kilm import units
from kedit.kilm.articles import counts_of, parse_part, settle
from kedit.kilm.corpus import FORMAT
from kedit.kilm.pool import Advance, Job, run_jobs
from kedit.kilm.titles import Descriptions, Titles, resolve, write_descriptions
from kedit.kilm.wikipedia import Part, split
from kedit.kilm.wikitext import Setting
from kedit.lm import backbones
from kedit.lm.text import fingerprint

PART_BYTES = 16 << 20  # stored bytes of one part
ENTITY_ROWS = 1 << 16
BLOCK = 1 << 24  # bytes copied at a time


def build_corpus(
    dump: list[Path],
    tokenizer: str,
    output: Path,
    setting: Setting = "lead",
    chunk_tokens: int = 448,
    descriptions: Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make a tokenised corpus of linked text from Wikipedia dumps. Interrupted, the same command goes on.

    Args:
        dump: pages-articles files (.xml or .xml.bz2, multistream or not), or .parquet files of
            wikimedia/structured-wikipedia. Redirects are followed across all of them.
        tokenizer: folder or hub id of the tokenizer whose ids the corpus holds; a fast one.
        output: folder of the corpus. manifest.json in it says what was kept and dropped, and why.
        setting: lead reads the text before the first heading of each article (the paper's primary setting), full the
            whole article (its data upscale).
        chunk_tokens: most tokens in a unit. An article is cut between paragraphs, else sentences, never in a mention.
        descriptions: table of titles and descriptions (tab-separated or .parquet) for articles whose page has no
            {{Short description}}; the first sentence serves where that has none either.
        workers: processes; as many as there are cores by default. 1 works in this process.

    Returns:
        the manifest.

    Raises:
        DataError: a damaged dump, another corpus in the folder, no space left.
    """
    output = Path(output)
    if chunk_tokens < 8:
        raise DataError(f"--chunk_tokens {chunk_tokens}: wanted at least 8")
    plan = Plan([Path(path) for path in dump], tokenizer, output, setting, chunk_tokens, descriptions)
    finished = plan.claim()
    if finished:
        return finished
    try:
        parts = plan.parts()
        sizes = [part.end - part.start for part in parts]
        todo = [i for i in range(len(parts)) if not plan.parsed(i).exists()]
        jobs = [Job(parse_part, (parts[i], plan.parsed(i), setting), sizes[i]) for i in todo]
        run_jobs(f"reading {len(parts)} part(s)", jobs, workers, done=sum(sizes) - sum(sizes[i] for i in todo))
        bases = plan.titles(len(parts))
        todo = [i for i in range(len(parts)) if not plan.units(i).exists()]
        rows = [pq.read_metadata(plan.parsed(i)).num_rows for i in range(len(parts))]
        jobs = [Job(write_units, (output, i, bases[i]), rows[i]) for i in todo]
        run_jobs("tokenising", jobs, workers, unit="page", done=sum(rows) - sum(rows[i] for i in todo))
        return join(plan, len(parts))
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise plan.no_space() from None
        raise


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
            if not path.is_file():
                raise DataError(f"{path}: no such file: give the dump's files after --dump (see --help)")
        if not dump:
            raise DataError("no dump given: name at least one file after --dump")
        if len({path.resolve() for path in dump}) < len(dump):
            raise DataError("--dump names the same file twice")
        self.tokenizer = load_tokenizer(tokenizer)
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
        return self.output / "parsed" / f"{part:05d}.parquet"

    def units(self, part: int) -> Path:
        return self.output / "units" / f"{part:05d}"

    def parts(self) -> list[Part]:
        return [
            part
            for path in self.dump
            for part in ([Part(path, 0, path.stat().st_size)] if path.suffix == ".parquet" else split(path, PART_BYTES))
        ]

    def claim(self) -> dict[str, Any] | None:
        """Take the output folder, or go on in it; the manifest where the corpus stands already.

        Raises:
            DataError: the folder holds something else, or a corpus of other settings.
        """
        place = self.output / "build.json"
        known: dict[str, Any] = {}
        if place.exists():
            known = json.loads(place.read_text())
        elif self.output.exists() and any(self.output.iterdir()):
            raise DataError(f"--output {self.output} is not empty and holds no corpus: choose another folder")
        else:
            self.output.mkdir(parents=True, exist_ok=True)
        self._compare(known)
        sources = _hashed(self.dump, known.get("sources", []))
        table = _hashed([self.table], known.get("descriptions") or []) if self.table else None
        for name, new in (("sources", sources), ("descriptions", table)):
            old = known.get(name, new)
            if [(s["bytes"], s["sha256"]) for s in old or []] != [(s["bytes"], s["sha256"]) for s in new or []]:
                raise self._other(name, _names(old), _names(new))
        self.settings |= {"sources": sources, "descriptions": table}
        manifest = self.output / "manifest.json"
        if manifest.exists():
            self.clear()
            return cast(dict[str, Any], json.loads(manifest.read_text()))
        for folder in ("parsed", "units"):
            (self.output / folder).mkdir(exist_ok=True)
        if not (self.output / "tokenizer").exists():
            beside = self.output / "tokenizer.partial"
            shutil.rmtree(beside, ignore_errors=True)
            # whether the hub was reachable is no property of a tokenizer
            self.tokenizer.init_kwargs.pop("local_files_only", None)
            self.tokenizer.save_pretrained(beside)
            settle(beside, self.output / "tokenizer")
        _write_json(place, self.settings)
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
        """Number the entities, once; the first entity of each part."""
        folder = self.output / "titles"
        if not folder.exists():
            titles, sizes, redirects = resolve([self.parsed(i) for i in range(parts)])
            beside = self.output / "titles.partial"
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            titles.save(beside)
            if self.table:
                write_descriptions(self.table, titles, beside / "descriptions")
            (beside / "counts.json").write_text(json.dumps({"sizes": sizes, "redirects": redirects}))
            settle(beside, folder)
        sizes = json.loads((folder / "counts.json").read_text())["sizes"]
        return [sum(sizes[:i]) for i in range(parts)]

    def clear(self) -> None:
        """Remove the intermediate results of a finished build."""
        for name in ("parsed", "units", "titles"):
            shutil.rmtree(self.output / name, ignore_errors=True)

    def no_space(self) -> DataError:
        for beside in self.output.glob("**/*.partial"):
            shutil.rmtree(beside, ignore_errors=True) if beside.is_dir() else beside.unlink()
        parts = self.parts()
        total = sum(part.end - part.start for part in parts)
        read = sum(part.end - part.start for i, part in enumerate(parts) if self.parsed(i).exists())
        used = sum(path.stat().st_size for path in self.output.glob("**/*") if path.is_file())
        # parsed text and arrays come to about twice the parsed text; before anything is parsed, to about the dump
        needed = max(2 * used * total // read - used if read else total, 1 << 20)
        free = shutil.disk_usage(self.output).free
        return DataError(
            f"no space left in {self.output}: about {needed >> 20:,} MB more are needed, {free >> 20:,} MB are free. "
            "What was finished is kept: make room and run the same command again"
        )


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


def write_units(output: Path, part: int, base: int, advance: Advance) -> None:
    """Write the arrays of one parsed part; its entities are numbered from `base`."""
    settings = (output / "build.json").read_text()
    titles = output / "titles"
    # a worker does many parts of one corpus; the folder may have been made anew in between
    key = (str(output.resolve()), settings, (titles / "counts.json").stat().st_mtime_ns)
    if key not in _opened:
        _opened.clear()
        table = titles / "descriptions"
        _opened[key] = units.UnitWriter(
            load_tokenizer(str(output / "tokenizer")),
            Titles.load(titles),
            json.loads(settings)["chunk_tokens"],
            Descriptions(table) if table.exists() else None,
        )
    _opened[key].write(output / "parsed" / f"{part:05d}.parquet", output / "units" / f"{part:05d}", base, advance)


_opened: dict[tuple[str, str, int], units.UnitWriter] = {}


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


def _write_json(path: Path, content: Any) -> None:
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    settle(beside, path)


def join(plan: Plan, parts: int) -> dict[str, Any]:
    """Put the parts' arrays together, write the manifest, and remove what lay between."""
    output = plan.output
    folders = [plan.units(i) for i in range(parts)]
    type_ = units.token_type(plan.tokenizer)
    for name, kind in units.ARRAYS.items():
        paths = [folder / f"{name}.bin" for folder in folders]
        if name in LENGTHS:
            lengths = np.concatenate([np.fromfile(path, np.int32) for path in paths])
            _save(output / f"{LENGTHS[name]}.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
        else:
            _concatenate(paths, output / f"{name}.npy", np.dtype(kind or type_), 3 if name == "mentions" else 1)
    _join_tables(folders, output)
    known = np.load(output / "description_offsets.npy")
    mentions = np.load(
        output / "mentions.npy", mmap_mode="r" if (output / "mentions.npy").stat().st_size > 128 else None
    )
    silent = int((np.diff(known)[mentions[:, 2]] == 0).sum())
    _write_json(output / "manifest.json", _manifest(plan, parts, silent))
    plan.clear()
    return cast(dict[str, Any], json.loads((output / "manifest.json").read_text()))


LENGTHS = {
    "lengths": "unit_offsets",
    "mention_counts": "mention_offsets",
    "title_lengths": "title_offsets",
    "description_lengths": "description_offsets",
}


def _manifest(plan: Plan, parts: int, silent: int) -> dict[str, Any]:
    pages: Counter[str] = Counter()
    links: Counter[str] = Counter()
    described: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for i in range(parts):
        read = counts_of(plan.parsed(i))
        written = json.loads((plan.units(i) / "counts.json").read_text())
        pages.update(read["pages"])
        links.update(read["links"])
        links.update(written["links"])
        described.update(written["descriptions"])
        again = written["pages"].get("duplicate title", 0)
        pages["duplicate title"] += again
        pages["article"] -= again
        for name in ("total_links", "leftover_marks", "articles_with_leftover_marks"):
            sums[name] += read[name]
        for name in ("units", "tokens", "mentions", "entities", "descriptions_shortened"):
            sums[name] += written.get(name, 0)
    # each link in the text met its fate in the second stage
    del links["in the text"]
    links["kept"] -= silent
    links["kept, but its entity has no description"] = silent
    titles = json.loads((plan.output / "titles" / "counts.json").read_text())
    sources = {
        name: [
            {"file": Path(s["file"]).name, "bytes": s["bytes"], "sha256": s["sha256"]}
            for s in plan.settings[name] or []
        ]
        for name in ("sources", "descriptions")
    }
    return {
        **plan.settings,
        **sources,
        "kedit": kedit.__version__,
        "parts": parts,
        **{name: sums[name] for name in ("units", "tokens", "mentions", "entities")},
        "token_type": units.token_type(plan.tokenizer).name,
        "pages": {"total": pages.total(), **dict(sorted((+pages).items()))},
        "redirects": titles["redirects"],
        "links": {"total": sums["total_links"], **dict(sorted((+links).items()))},
        "descriptions_by_source": dict(sorted((+described).items())),
        **{n: sums[n] for n in ("descriptions_shortened", "leftover_marks", "articles_with_leftover_marks")},
    }


def _save(path: Path, array: np.ndarray) -> None:
    beside = path.with_suffix(".partial")
    with beside.open("wb") as file:
        np.save(file, array)
    settle(beside, path)


def _concatenate(paths: Sequence[Path], path: Path, kind: np.dtype, width: int) -> None:
    """Raw arrays one behind the other as one .npy, without holding them."""
    count = sum(part.stat().st_size for part in paths) // kind.itemsize // width
    beside = path.with_suffix(".partial")
    with beside.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count, width) if width > 1 else (count,)})
        for part in paths:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, BLOCK)
    settle(beside, path)


def _join_tables(folders: Sequence[Path], output: Path) -> None:
    anchors = pa.concat_tables([pq.read_table(folder / "anchors.parquet") for folder in folders])
    summed = anchors.group_by(["surface", "entity"], use_threads=False).aggregate([("count", "sum")])
    summed = summed.rename_columns(["surface", "entity", "count"]).select(units.ANCHOR.names)
    order = [("surface", "ascending"), ("count", "descending"), ("entity", "ascending")]
    _save_table(output / "anchors.arrow", units.ANCHOR, [summed.sort_by(order)])
    _save_table(output / "entities.arrow", units.ENTITIES, (pq.read_table(f / "entities.parquet") for f in folders))


def _save_table(path: Path, schema: pa.Schema, tables: Any) -> None:
    beside = path.with_suffix(".partial")
    with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), max_chunksize=ENTITY_ROWS)
    settle(beside, path)
