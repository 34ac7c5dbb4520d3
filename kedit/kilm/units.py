"""Stage B of a corpus: the cleaned articles of one part become token arrays, cut into units, complete or absent.

Knows tokens and entities; knows nothing of wikitext or of other parts.
"""

import json
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from kedit.kilm.articles import Row, partial, settle
from kedit.kilm.description import sentence_ends, shorten
from kedit.kilm.markup import GENERIC
from kedit.kilm.titles import DISAMBIGUATION, MISSING, UNRESOLVED, Descriptions, Titles, hashes
from kedit.lm.text import Encoded, encode

ROWS = 128  # articles encoded at a time
ANCHORS = 500_000  # (surface, entity) pairs counted in memory
ENTITIES = pa.schema({"title": pa.string(), "description": pa.string(), "source": pa.string()})
ANCHOR = pa.schema({"surface": pa.string(), "entity": pa.int32(), "count": pa.int64()})
# raw arrays of a part, by file name; tokens take the corpus' own type
ARRAYS = {
    "tokens": None,
    "lengths": np.int32,
    "articles": np.int32,
    "mention_counts": np.int32,
    "mentions": np.int32,
    "title_tokens": None,
    "title_lengths": np.int32,
    "description_tokens": None,
    "description_lengths": np.int32,
}
LOST = {
    MISSING: "target not in the dump",
    DISAMBIGUATION: "target is a disambiguation page",
    UNRESOLVED: "target is a redirect in a loop",
}


def token_type(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if len(tokenizer) < 1 << 16 else np.uint32)


def token_spans(offsets: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Token spans int64 [m, 2] that overlap the character spans [m, 2]; start == end where no token does."""
    starts = np.searchsorted(np.maximum.accumulate(offsets[:, 1]), spans[:, 0], side="right")
    ends = np.searchsorted(np.maximum.accumulate(offsets[:, 0]), spans[:, 1], side="left")
    return np.stack([starts, np.maximum(starts, ends)], axis=1)


def cut(text: str, offsets: np.ndarray, mentions: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Cut an article into token ranges of at most `longest`: between paragraphs, else sentences, else words.

    Args:
        text: the article, one paragraph a line.
        offsets: [n, 2] character offsets of its tokens.
        mentions: [m, 2] token spans, none longer than `longest`; no cut falls into one.
        longest: tokens in a unit.
    """
    count = len(offsets)
    if count <= longest:
        return _trimmed(text, offsets, [0, count])
    ends = np.maximum.accumulate(offsets[:, 1])
    paragraphs, sentences, start = [], [], 0
    for line in text.split("\n"):
        paragraphs.append(start)
        sentences += [start + end for end in sentence_ends(line)[:-1]]
        start += len(line) + 1
    inside = np.zeros(count + 1, bool)
    for a, b in mentions:
        inside[a + 1 : b] = True

    def token_cuts(places: list[int]) -> list[int]:
        found = np.unique(np.searchsorted(ends, places, side="right"))
        return [int(at) for at in found if not inside[at]]

    by_paragraph, by_sentence = token_cuts(paragraphs), token_cuts(sentences)
    cuts = [0]
    while count - cuts[-1] > longest:
        at, limit = cuts[-1], cuts[-1] + longest
        paragraph, sentence = _last(by_paragraph, at, limit), _last(by_sentence, at, limit)
        if paragraph >= at + longest // 2:
            cuts.append(paragraph)
        elif max(paragraph, sentence) > at:
            cuts.append(max(paragraph, sentence))
        else:
            cuts.append(_word(text, offsets, inside, at, limit))
    return _trimmed(text, offsets, [*cuts, count])


def _last(cuts: list[int], after: int, limit: int) -> int:
    """The last cut in (after, limit], or -1."""
    at = bisect_left(cuts, limit + 1) - 1
    return cuts[at] if at >= 0 and cuts[at] > after else -1


def _word(text: str, offsets: np.ndarray, inside: np.ndarray, after: int, limit: int) -> int:
    """The last cut in (after, limit] between words, else between tokens; never inside a mention."""
    free = [at for at in range(after + 1, limit + 1) if not inside[at]]
    words = [
        at for at in free if (begin := int(offsets[at, 0])) and (text[begin].isspace() or text[begin - 1].isspace())
    ]
    return (words or free)[-1]


def _trimmed(text: str, offsets: np.ndarray, cuts: list[int]) -> list[tuple[int, int]]:
    ranges = []
    for start, end in pairwise(cuts):
        while start < end and not text[offsets[start, 0] : offsets[start, 1]].strip():
            start += 1
        while end > start and not text[offsets[end - 1, 0] : offsets[end - 1, 1]].strip():
            end -= 1
        if start < end:
            ranges.append((start, end))
    return ranges


class UnitWriter:
    """Turns the parsed articles of one part into arrays.

    Args:
        tokenizer: a fast tokenizer.
        titles: every title of the dump.
        longest: tokens in a unit.
        descriptions: a table beside the templates, if given.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, titles: Titles, longest: int, descriptions: Descriptions | None = None
    ) -> None:
        self.tokenizer, self.titles, self.longest, self.descriptions = tokenizer, titles, longest, descriptions
        self.type = token_type(tokenizer)
        # a description longer than half a unit leaves no room for its context
        self.longest_description = max(longest // 2, 1)

    def write(self, parsed: Path, folder: Path, base: int, advance: Callable[[int], None] = lambda count: None) -> None:
        """Write the arrays of the part `parsed` to `folder`; its entities are numbered from `base`."""
        beside = partial(folder)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        self.links: Counter[str] = Counter()
        self.pages: Counter[str] = Counter()
        self.described: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.anchors: Counter[tuple[str, int]] = Counter()
        self.next_entity = base
        file = pq.ParquetFile(parsed)
        with ExitStack() as stack:
            self.files: dict[str, BinaryIO] = {
                name: stack.enter_context((beside / f"{name}.bin").open("wb")) for name in ARRAYS
            }
            entities = stack.enter_context(pq.ParquetWriter(beside / "entities.parquet", ENTITIES, compression="zstd"))
            anchors = stack.enter_context(pq.ParquetWriter(beside / "anchors.parquet", ANCHOR, compression="zstd"))
            for batch in file.iter_batches(batch_size=ROWS):
                rows = [row for row in batch.to_pylist() if row["kind"] == "article"]
                entities.write_table(pa.Table.from_pylist(self._rows(rows), ENTITIES))
                if len(self.anchors) > ANCHORS:
                    self._spill(anchors)
                advance(len(batch))
            self._spill(anchors)
        report = {
            "links": self.links,
            "pages": self.pages,
            "descriptions": self.described,
            "entities": self.next_entity - base,
            **self.counts,
        }
        (beside / "counts.json").write_text(json.dumps(report, sort_keys=True))
        settle(beside, folder)

    def _spill(self, writer: pq.ParquetWriter) -> None:
        ordered = sorted(self.anchors.items())
        writer.write_table(
            pa.table(
                [[key[0] for key, _ in ordered], [key[1] for key, _ in ordered], [count for _, count in ordered]],
                schema=ANCHOR,
            )
        )
        self.anchors.clear()

    def _put(self, name: str, values: Any) -> None:
        self.files[name].write(np.ascontiguousarray(values, dtype=ARRAYS[name] or self.type).tobytes())

    def _rows(self, rows: list[Row]) -> list[dict[str, str]]:
        """Write the arrays of some articles; their rows in the table of entities."""
        keys = hashes([row["title"] for row in rows])
        fresh = []
        for row, key, entity in zip(rows, keys, self.titles.look_up(keys), strict=True):
            if entity == self.next_entity:
                self.next_entity += 1
                fresh.append((row, key, int(entity)))
            else:  # the same title stood before
                self.pages["duplicate title"] += 1
                self.links["on a page whose title stood before"] += len(row["targets"])
        described = self._describe([row for row, _, _ in fresh], np.asarray([key for _, key, _ in fresh], np.uint64))
        texts = [row["text"] for row, _, _ in fresh]
        for (row, _, entity), encoded in zip(fresh, encode(self.tokenizer, texts), strict=True):
            self._article(row, entity, encoded)
        return described

    def _describe(self, rows: list[Row], keys: np.ndarray) -> list[dict[str, str]]:
        given = self.descriptions.get(keys) if self.descriptions else [""] * len(rows)
        entities = []
        for row, other in zip(rows, given, strict=True):
            description, source = row["description"], row["source"]
            if other and source not in ("template", "none"):
                description, source = (shorten(other), "table") if other.lower() not in GENERIC else ("", "generic")
            entities.append({"title": row["title"], "description": description, "source": source})
        titles = encode(self.tokenizer, [entity["title"] for entity in entities], leading_space=True)
        texts = encode(self.tokenizer, [entity["description"] for entity in entities], leading_space=True)
        for entity, title, text in zip(entities, titles, texts, strict=True):
            ids = text.ids if entity["description"] else text.ids[:0]
            if len(ids) > self.longest_description:
                end = int(text.offsets[self.longest_description - 1, 1])
                entity["description"] = shorten(entity["description"][: end + 1], end)
                ids = encode(self.tokenizer, [entity["description"]], leading_space=True)[0].ids
                ids = ids[: self.longest_description]
                self.counts["descriptions_shortened"] += 1
            if not len(ids):
                entity["description"] = ""
            self.described[entity["source"]] += 1
            self._put("title_tokens", title.ids)
            self._put("title_lengths", [len(title.ids)])
            self._put("description_tokens", ids)
            self._put("description_lengths", [len(ids)])
        return entities

    def _article(self, row: Row, entity: int, encoded: Encoded) -> None:
        text, offsets = row["text"], encoded.offsets
        found = self.titles.look_up(hashes(row["targets"]))
        spans = np.stack([row["starts"], row["ends"]], axis=1).astype(np.int64).reshape(-1, 2)
        tokens = token_spans(offsets, spans) if len(offsets) else np.zeros_like(spans)
        mentions: list[tuple[int, int, int]] = []
        for target, (start, end), (first, last) in zip(found.tolist(), spans.tolist(), tokens.tolist(), strict=True):
            if target < 0:
                self.links[LOST[target]] += 1
                continue
            self.anchors[text[start:end], target] += 1
            if first == last:
                self.links["no token of its own"] += 1
            elif last - first > self.longest:
                self.links["longer than a unit"] += 1
            elif mentions and mentions[-1][1] > first:
                self.links["shares a token with the mention before"] += 1
            else:
                mentions.append((first, last, target))
        placed = np.asarray(mentions, dtype=np.int32).reshape(-1, 3)
        inside = 0
        for start, end in cut(text, offsets, placed[:, :2], self.longest):
            low, high = np.searchsorted(placed[:, 0], [start, end])
            own = placed[low:high] - np.asarray([start, start, 0], np.int32)
            own = own[own[:, 1] <= end - start]
            inside += len(own)
            self._put("tokens", encoded.ids[start:end])
            self._put("lengths", [end - start])
            self._put("articles", [entity])
            self._put("mention_counts", [len(own)])
            self._put("mentions", own)
            self.counts["units"] += 1
            self.counts["tokens"] += end - start
        self.counts["mentions"] += inside
        self.links["kept"] += inside
        self.links["no token of its own"] += len(mentions) - inside
