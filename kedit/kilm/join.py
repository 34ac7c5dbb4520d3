"""The last step of a build: the parts' arrays and tables joined, and the manifest that counts everything."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import kedit
from kedit.kilm import units
from kedit.kilm.articles import counts_of, partial, settle
from kedit.kilm.plan import BLOCK, Plan, write_json

ENTITY_ROWS = 1 << 16


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
    write_json(output / "manifest.json", _manifest(plan, parts, silent))
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
        for name in ("total_links", "unclosed_marks_removed", "articles_with_unclosed_marks"):
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
        **{n: sums[n] for n in ("descriptions_shortened", "unclosed_marks_removed", "articles_with_unclosed_marks")},
    }


def _save(path: Path, array: np.ndarray) -> None:
    beside = partial(path)
    with beside.open("wb") as file:
        np.save(file, array)
    settle(beside, path)


def _concatenate(paths: Sequence[Path], path: Path, kind: np.dtype, width: int) -> None:
    """Raw arrays one behind the other as one .npy, without holding them."""
    count = sum(part.stat().st_size for part in paths) // kind.itemsize // width
    beside = partial(path)
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
    beside = partial(path)
    with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), max_chunksize=ENTITY_ROWS)
    settle(beside, path)
