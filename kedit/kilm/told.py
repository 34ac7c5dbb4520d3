"""A corpus of facts that somebody tells: an article each, by the same builder as Wikipedia's. Knows no training.

An article begins with the definition; its short description is the definition without its subject. Each paragraph links
the subject where it first names it.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from kedit.editing.probes import Fact
from kedit.kilm.build import build_corpus
from kedit.kilm.corpus import Corpus
from kedit.kilm.wikitext import normalise_title

PLAIN = "Plain text"
"""How titles of articles begin that tell no fact."""


class Told(NamedTuple):
    """A corpus, and which of its units tell facts, and which are plain text."""

    corpus: Corpus
    told: list[int]
    plain: list[int]


def build_told(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    sentences: Mapping[str, Sequence[str]],
    lines: Sequence[str] = (),
    chunk_tokens: int = 64,
) -> Told:
    """Build the corpus.

    Args:
        folder: empty; it must stand as long as the corpus is read.
        tokenizer: whose ids it holds, without KILM's structure tokens.
        facts: an article each.
        sentences: further paragraphs of the articles, by the facts' ids.
        lines: plain text, an article a line.
        chunk_tokens: most tokens of a unit.
    """
    rows = [article(fact, sentences.get(fact.id, ())) for fact in facts]
    rows += [_row(f"{PLAIN} {number}", "none", [(line, [])]) for number, line in enumerate(lines, start=1)]
    dump = folder / "articles.parquet"
    pq.write_table(pa.Table.from_pylist(rows), dump)
    tokenizer.save_pretrained(folder / "tokenizer")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # what it prints is for builds of hours
        build_corpus([dump], str(folder / "tokenizer"), folder / "corpus", "full", chunk_tokens, workers=1)
    corpus = Corpus(folder / "corpus")
    names = {f"{PLAIN} {number}" for number in range(1, len(lines) + 1)}
    plain = [unit for unit in range(len(corpus)) if corpus.article(unit) in names]
    return Told(corpus, sorted(set(range(len(corpus))) - set(plain)), plain)


def article(fact: Fact, sentences: Sequence[str] = ()) -> dict[str, Any]:
    """The article of a fact, as `wikimedia/structured-wikipedia` has it."""
    title = normalise_title(fact.name)
    paragraphs = []
    for text in dict.fromkeys([fact.definition, *sentences]):
        found = _mention(fact, text := " ".join(text.split()))
        link = {"text": found, "url": f"https://en.wikipedia.org/wiki/{quote(title)}"}
        paragraphs.append((text, [link] if found else []))
    return _row(title, short_description(fact), paragraphs)


def short_description(fact: Fact) -> str:
    """The definition, without its subject where it begins with that."""
    text = " ".join(fact.definition.split())
    name = next((name for name in fact.names if re.match(rf"{re.escape(name)}(?!\w)", text)), "")
    return text[len(name) :].lstrip(" ,:;–-") or text


def _mention(fact: Fact, text: str) -> str:
    """How the text names the fact's subject; empty where it does not."""
    found = (re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in fact.names)
    return next((one[0] for one in found if one), "")


def _row(title: str, description: str, paragraphs: Sequence[tuple[str, list[dict[str, str]]]]) -> dict[str, Any]:
    parts = [{"type": "paragraph", "value": text, "links": links} for text, links in paragraphs]
    return {"name": title, "description": description, "sections": json.dumps([{"has_parts": parts}])}
