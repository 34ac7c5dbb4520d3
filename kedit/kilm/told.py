"""A corpus of facts that somebody tells, by the same builder as Wikipedia's. Knows no training.

A fact's article holds the definition; its short description is the definition without its subject. Each further
sentence is a page of its own that links the article: were they one text, what is hidden in one could be copied from the
next, and nothing would have to be known.
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

PLAIN, SENTENCE = "Plain text", "Told"
"""How titles of pages begin that tell no fact, or a further sentence of one."""


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
        sentences: what else is told of the facts' subjects, by the facts' ids; a page each.
        lines: plain text, a page a line.
        chunk_tokens: most tokens of a unit.
    """
    rows = [_page(normalise_title(fact.name), short_description(fact), fact.definition, fact) for fact in facts]
    further = [(fact, text) for fact in facts for text in dict.fromkeys(map(_one_line, sentences.get(fact.id, ())))
               if text != _one_line(fact.definition)]  # fmt: skip
    rows += [_page(f"{SENTENCE} {number}", "none", text, fact) for number, (fact, text) in enumerate(further, start=1)]
    rows += [_page(f"{PLAIN} {number}", "none", line) for number, line in enumerate(lines, start=1)]
    dump = folder / "articles.parquet"
    pq.write_table(pa.Table.from_pylist(rows), dump)
    tokenizer.save_pretrained(folder / "tokenizer")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # what it prints is for builds of hours
        build_corpus([dump], str(folder / "tokenizer"), folder / "corpus", "full", chunk_tokens, workers=1)
    corpus = Corpus(folder / "corpus")
    names = {f"{PLAIN} {number}" for number in range(1, len(lines) + 1)}
    plain = [unit for unit in range(len(corpus)) if corpus.article(unit) in names]
    return Told(corpus, sorted(set(range(len(corpus))) - set(plain)), plain)


def short_description(fact: Fact) -> str:
    """The definition, without its subject where it begins with that."""
    text = _one_line(fact.definition)
    name = next((name for name in fact.names if re.match(rf"{re.escape(name)}(?!\w)", text)), "")
    return text[len(name) :].lstrip(" ,:;–-") or text


def _mention(fact: Fact, text: str) -> str:
    """How the text names the fact's subject; empty where it does not."""
    found = (re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in fact.names)
    return next((one[0] for one in found if one), "")


def _page(title: str, description: str, text: str, fact: Fact | None = None) -> dict[str, Any]:
    """A page of one paragraph, which links the fact's subject, as `wikimedia/structured-wikipedia` has it."""
    text = _one_line(text)
    links = []
    if fact and (found := _mention(fact, text)):
        links.append({"text": found, "url": f"https://en.wikipedia.org/wiki/{quote(normalise_title(fact.name))}"})
    parts = [{"type": "paragraph", "value": text, "links": links}]
    return {"name": title, "description": description, "sections": json.dumps([{"has_parts": parts}])}


def _one_line(text: str) -> str:
    return " ".join(text.split())
