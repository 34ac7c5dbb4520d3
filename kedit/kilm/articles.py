"""Stage A of a corpus: one part of a dump becomes one parquet file of cleaned articles, complete or absent.

Knows pages and their text; knows nothing of tokens, nor of other parts.
"""

import gc
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kedit.kilm import structured
from kedit.kilm.description import describe
from kedit.kilm.markup import DISAMBIGUATED, DISAMBIGUATIONS
from kedit.kilm.wikipedia import Page, Part, pages
from kedit.kilm.wikitext import Clean, ParserError, Setting, clean, normalise_title
from kedit.running.files import sync

SCHEMA = pa.schema(
    {
        "title": pa.string(),
        "kind": pa.string(),  # article, redirect, disambiguation
        "redirect": pa.string(),
        "description": pa.string(),
        "source": pa.string(),
        "text": pa.string(),
        "starts": pa.list_(pa.int32()),
        "ends": pa.list_(pa.int32()),
        "targets": pa.list_(pa.string()),
    }
)
ROWS = 512  # held in memory at a time
_ALONE, _KIND = ("|".join(sorted(names)).replace(" ", "[ _-]") for names in (DISAMBIGUATIONS, DISAMBIGUATED))
DISAMBIGUATION = re.compile(
    rf"__DISAMBIG__|\{{\{{\s*(?:template:)?(?:{_ALONE}|(?:{_KIND})[ _]disambig(?:uation)?)\s*(?:\||\}}\}})",
    re.IGNORECASE,
)
COMMENT = re.compile(r"<!--.*?-->|<nowiki>.*?</nowiki>", re.DOTALL)

Row = dict[str, Any]


class Counts:
    """What became of pages and links so far."""

    def __init__(self) -> None:
        self.pages: Counter[str] = Counter()
        self.links: Counter[str] = Counter()
        self.total_links = 0
        self.leftovers = 0
        self.pages_with_leftovers = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "pages": dict(sorted(self.pages.items())),
            "links": dict(sorted(self.links.items())),
            "total_links": self.total_links,
            "unclosed_marks_removed": self.leftovers,
            "articles_with_unclosed_marks": self.pages_with_leftovers,
        }

    def dropped(self, page: str, reason: str, text: str) -> None:
        """A page dropped whole: its links are counted by their brackets."""
        self.pages[page] += 1
        count = text.count("[[")
        self.links[reason] += count
        self.total_links += count


def parse_part(part: Part, path: Path, setting: Setting, advance: Callable[[int], None] = lambda count: None) -> None:
    """Write the articles, redirects and disambiguation pages of a part to `path`, with the counts in its metadata.

    Raises:
        DataError: the part is damaged; nothing is written then.
    """
    counts = Counts()
    beside = partial(path)
    collecting = gc.isenabled()
    gc.disable()  # no cycles arise here; to look for them among millions of parser tokens takes a sixth of the time
    try:
        _write(part, beside, setting, counts, advance)
    finally:
        if collecting:
            gc.enable()
    settle(beside, path)


def _write(part: Part, beside: Path, setting: Setting, counts: Counts, advance: Callable[[int], None]) -> None:
    with pq.ParquetWriter(beside, SCHEMA, compression="zstd", write_statistics=False) as writer:
        rows: list[Row] = []
        for row in _rows(part, setting, counts, advance):
            rows.append(row)
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        writer.add_key_value_metadata({"counts": json.dumps(counts.as_dict())})


def partial(path: Path) -> Path:
    """Where this process writes what `settle` then names `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def settle(beside: Path, path: Path) -> None:
    """Give a finished file or folder its name, so that it is there whole or not at all."""
    for inner in [*beside.rglob("*"), beside]:
        sync(inner)
    os.replace(beside, path)
    sync(path.parent)


def counts_of(path: Path) -> dict[str, Any]:
    """The counts that `parse_part` left in a file."""
    metadata: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[b"counts"])
    return metadata


def _rows(part: Part, setting: Setting, counts: Counts, advance: Callable[[int], None]) -> Iterator[Row]:
    if part.path.suffix == ".parquet":
        for title, names, cleaned in structured.articles(part.path, setting, advance):
            yield _article(title, cleaned, counts)
            for name in names:
                counts.pages["redirect"] += 1
                yield _row(normalise_title(name), "redirect", redirect=title)
        return
    for page in pages(part, advance):
        row = _page(page, setting, counts)
        if row:
            yield row


def _page(page: Page, setting: Setting, counts: Counts) -> Row | None:
    text = page.text or ""
    if page.namespace != 0:
        counts.dropped("other namespace", "on a page of another namespace", text)
        return None
    if page.redirect is not None:
        counts.pages["redirect"] += 1
        return _row(page.title, "redirect", redirect=normalise_title(page.redirect))
    if not text.strip():
        counts.pages["without wikitext"] += 1
        return None
    if DISAMBIGUATION.search(text) and DISAMBIGUATION.search(COMMENT.sub("", text)):
        counts.dropped("disambiguation", "on a disambiguation page", text)
        return _row(page.title, "disambiguation")
    try:
        cleaned = clean(text, setting)
    except (ParserError, RecursionError):
        counts.dropped("not parsable", "on a page that is not parsable", text)
        return None
    return _article(page.title, cleaned, counts)


def _article(title: str, cleaned: Clean, counts: Counts) -> Row:
    counts.pages["article" if cleaned.text else "article without text"] += 1
    counts.links.update(cleaned.fates)
    counts.total_links += cleaned.total
    counts.leftovers += cleaned.leftovers
    counts.pages_with_leftovers += bool(cleaned.leftovers)
    description, source = describe(cleaned.short_description, cleaned.text)
    starts, ends, targets = zip(*cleaned.links, strict=True) if cleaned.links else ((), (), ())
    return _row(title, "article", "", description, source, cleaned.text, starts, ends, targets)


def _row(
    title: str,
    kind: str,
    redirect: str = "",
    description: str = "",
    source: str = "",
    text: str = "",
    starts: tuple[int, ...] = (),
    ends: tuple[int, ...] = (),
    targets: tuple[str, ...] = (),
) -> Row:
    return dict(
        zip(SCHEMA.names, (title, kind, redirect, description, source, text, starts, ends, targets), strict=True)
    )
