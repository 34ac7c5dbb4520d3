"""The parquet form of wikimedia/structured-wikipedia: articles with descriptions and links, without wikitext.

Its links have no offsets: each is found again in its paragraph by its text. Knows this schema only.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from kedit.editing.problems import BadInput, refuse
from kedit.editing.sources import DataError
from kedit.kilm.markup import DROPPED_SECTIONS, NAMESPACES
from kedit.kilm.wikitext import Clean, Setting, normalise_title

COLUMNS = ("name", "abstract", "description", "sections", "redirects")
ROWS = 64  # articles held at a time


def articles(
    path: Path, setting: Setting, advance: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[str, list[str], Clean]]:
    """Each article as (title, titles that redirect to it, text with links).

    Raises:
        DataError: no parquet file, or one without these columns.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: no readable parquet file ({error}): download it again") from None
    present = file.schema_arrow.names
    if "name" not in present or "sections" not in present:
        raise DataError(
            f"{path}: wanted the columns name and sections of wikimedia/structured-wikipedia, "
            f"found {', '.join(present)}"
        )
    columns = [column for column in COLUMNS if column in present]
    share = path.stat().st_size / max(file.metadata.num_rows, 1)
    number = 0
    try:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                try:
                    article = _article(row, setting)
                except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
                    what = f"is no article of wikimedia/structured-wikipedia ({str(error)[:80]})"
                    refuse(BadInput(f"{path}, row {number:,}", what, "download the file again"))
                else:
                    yield article
            advance(int(share * len(batch)))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: damaged parquet file ({error}): download it again") from None


def _article(row: dict[str, Any], setting: Setting) -> tuple[str, list[str], Clean]:
    sections = row["sections"]
    if isinstance(sections, str):
        sections = json.loads(sections) if sections else []
    sections = sections or []
    paragraphs: list[str] = []
    links: list[tuple[int, int, str]] = []
    fates: Counter[str] = Counter()
    length = 0
    for number, section in enumerate(sections):
        reason = ""
        if setting == "lead" and number:
            reason = "outside the lead"
        elif (section.get("name") or "").strip().lower() in DROPPED_SECTIONS:
            reason = "in a dropped section"
        for value, found in _paragraphs(section):
            if reason:
                fates[reason] += len(found)
                continue
            text = " ".join(value.split())
            links += [(length + a, length + b, title) for a, b, title in _placed(text, found, fates)]
            if text:
                paragraphs.append(text)
                length += len(text) + 1
    if not paragraphs and row.get("abstract"):
        paragraphs = [" ".join(row["abstract"].split())]
    redirects = row.get("redirects") or []
    names = [name["name"] for name in redirects if isinstance(name, dict) and name.get("name")]
    if not isinstance(row["name"], str):
        raise TypeError("it has no name")
    return row["name"], names, Clean("\n".join(paragraphs), links, row.get("description"), fates, total=fates.total())


def _paragraphs(part: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(text, links) of each paragraph below a section, in order."""
    if part.get("value"):
        yield part["value"], part.get("links") or []
    for inner in part.get("has_parts") or part.get("parts") or []:
        yield from _paragraphs(inner)


def _placed(text: str, found: list[dict[str, Any]], fates: Counter[str]) -> list[tuple[int, int, str]]:
    placed: list[tuple[int, int, str]] = []
    for link in found:
        surface = " ".join((link.get("text") or "").split())
        title = _title(link.get("url") or "")
        prefix = title.partition(":")[0].lower()
        if not title or (":" in title and (prefix in NAMESPACES or prefix in ("file", "image", "category"))):
            fates["another namespace or project"] += 1
        elif not surface:
            fates["nothing shown"] += 1
        else:
            start = text.find(surface, placed[-1][1] if placed else 0)
            if start < 0:
                fates["not found in its paragraph"] += 1
            else:
                placed.append((start, start + len(surface), title))
                fates["in the text"] += 1
    return placed


def _title(url: str) -> str:
    """The article that a web address means; empty for addresses outside Wikipedia."""
    address = urlsplit(url)
    if address.netloc and not address.netloc.endswith("wikipedia.org"):
        return ""
    path = unquote(address.path)
    return normalise_title(path.partition("/wiki/")[2] if "/wiki/" in path else path.removeprefix("./"))
