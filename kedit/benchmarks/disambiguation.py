"""Entity disambiguation benchmarks with candidate lists: AIDA testa, KORE50 and RSS-500.

Knows the files, not how a candidate is scored. Candidates come shuffled (always alike): in the AIDA file the first is
the gold, and in the order of titles the plain title, which is right more often than chance, comes first.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

from kedit.editing.problems import BadInput, each, refuse
from kedit.editing.records import existing_file, fields, kind_of, read_json_lines
from kedit.editing.sources import Candidate, DataError, MentionQuestion, MentionSource

Span = tuple[int, int]
Document = tuple[str, list[tuple[Span, str, str]]]
"""Text and labels (span, entity id, name) in document order."""
NIL = "<NIL>"  # how the documents mark a mention of no known entity


def context_window(text: str, span: Span, characters: int) -> tuple[str, Span]:
    """At most `characters` characters around the mention, whole words only, with the span moved accordingly.

    What one side does not need goes to the other. A mention longer than the window stays whole.
    """
    start, end = span
    room = max(characters - (end - start), 0)
    before = min(start, max(room // 2, room - (len(text) - end)))
    left, right = start - before, min(len(text), end + room - before)
    if left and not text[left - 1].isspace():
        left = next((at for at in range(left, start) if text[at].isspace()), start)
    if right < len(text) and not text[right].isspace():
        right = next((at for at in range(right, end, -1) if text[at - 1].isspace()), end)
    left = start - len(text[left:start].lstrip())
    right = end + len(text[end:right].rstrip())
    return text[left:right], (start - left, end - left)


def align(mentions: Sequence[str], surfaces: Sequence[str], agree: Sequence[Sequence[bool]]) -> list[int | None]:
    """For each mention the index of its surface form, None where it has none; both stand in document order.

    A mention fits a surface that is equal but for case, spaces and masked characters (`*`), or else one that contains
    it or is contained in it (the file may say "Phil Simmons" where the text says "Simmons"). Among all alignments
    that keep the order, the one with the best fit is taken.

    Args:
        mentions: the mentions, M of them.
        surfaces: the texts of the spans, S of them.
        agree: [M, S], whether other evidence speaks for the pair; decides between spans that fit equally well.
    """
    weights = [
        [
            fit + bool(extra) if (fit := _fit(mention, surface)) else 0
            for surface, extra in zip(surfaces, row, strict=True)
        ]
        for mention, row in zip(mentions, agree, strict=True)
    ]
    # best[m][s]: the best total fit of mentions m.. with surfaces s..
    best = [[0] * (len(surfaces) + 1) for _ in range(len(mentions) + 1)]
    for m in reversed(range(len(mentions))):
        for s in reversed(range(len(surfaces))):
            paired = weights[m][s] and weights[m][s] + best[m + 1][s + 1]
            best[m][s] = max(paired, best[m + 1][s], best[m][s + 1])
    found: list[int | None] = []
    s = 0
    for m in range(len(mentions)):
        while s < len(surfaces) and best[m][s] == best[m][s + 1]:
            s += 1
        paired = s < len(surfaces) and weights[m][s] and best[m][s] == weights[m][s] + best[m + 1][s + 1]
        found.append(s if paired else None)
        s += bool(paired)
    return found


def _fit(mention: str, surface: str) -> int:
    mention, surface = ("".join(string.split()).casefold() for string in (mention, surface))
    if len(mention) == len(surface) and all(
        theirs in (ours, "*") for ours, theirs in zip(mention, surface, strict=True)
    ):
        return 4
    return 2 if surface and (surface in mention or mention in surface) else 0


class _Benchmark(MentionSource):
    """A folder of documents with gold spans and of candidate lists.

    Attributes:
        skipped: what the last pass left out, by reason.
    """

    files: tuple[str, str]

    def __init__(self, folder: str | Path, context_characters: int = 600, limit: int | None = None) -> None:
        if context_characters < 1:
            what = f"context_characters is {context_characters}"
            raise BadInput("", what, "give the width of the context, at least 1", "context_characters")
        if limit is not None and limit < 1:
            remedy = "give the number of mentions to read, at least 1, or null for all"
            raise BadInput("", f"limit is {limit}", remedy, "limit")
        self.documents, self.candidates = (existing_file(Path(folder) / file, "folder") for file in self.files)
        self.context_characters = context_characters
        self.limit = limit
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[MentionQuestion]:
        self.skipped.clear()
        return islice(self._questions(), self.limit)

    @abstractmethod
    def _questions(self) -> Iterator[MentionQuestion]: ...

    def _question(
        self, text: str, span: Span, candidates: Iterable[Candidate], gold: str, source: str
    ) -> MentionQuestion:
        text, span = context_window(text, span, self.context_characters)
        candidates = sorted(candidates, key=lambda candidate: candidate.title)
        Random(source).shuffle(candidates)
        return MentionQuestion(text, span, candidates, gold, source)


class AidaTesta(_Benchmark):
    """AIDA-CoNLL testa: news of 1996, 5,191 mentions, 4,791 of them linked, 12.6 candidates each.

    The candidate file lists the mentions in document order, without offsets: they are aligned with the gold spans of
    the document. The text is masked: many words are `*` throughout. The prior is the
    number of links to the candidate's article.

    Args:
        folder: holds aida-conll-dev.benchmark.jsonl and aida_testa_candidates.jsonl.
        context_characters: how much text around the mention to give, in characters.
        limit: read only so many mentions, from the start.
    """

    name = "aida_testa"
    files = ("aida-conll-dev.benchmark.jsonl", "aida_testa_candidates.jsonl")

    def _questions(self) -> Iterator[MentionQuestion]:
        def document(record: Any, where: str) -> tuple[int, Document]:
            (number,) = fields(record, where, id=int)
            return number, _document(record, where)

        def listed(record: Any, where: str) -> tuple[int, list[tuple[str, str, list[Candidate]]]]:
            number, mentions = fields(record, where, doc_id=int, mentions=list)
            return number, [self._mention(mention, where) for mention in mentions]

        documents = dict(each(read_json_lines(self.documents), document))
        for number, read in each(read_json_lines(self.candidates), listed):
            place = number - 1  # the candidate file counts from one, the other from zero
            if place not in documents:
                self.skipped["document without text"] += len(read)
                continue
            text, labels = documents[place]
            agree = [[gold == name for _, _, name in labels] for _, gold, _ in read]
            surfaces = [text[start:end] for (start, end), _, _ in labels]
            found = align([surface for surface, _, _ in read], surfaces, agree)
            for order, (index, (_, gold, candidates)) in enumerate(zip(found, read, strict=True), start=1):
                if index is None:
                    self.skipped["mention not found in the text"] += 1
                else:
                    source = f"{self.documents.name} {place}, mention {order}"
                    yield self._question(text, labels[index][0], candidates, gold, source)

    @staticmethod
    def _mention(record: Any, where: str) -> tuple[str, str, list[Candidate]]:
        surface, url, listed = fields(record, where, mention=str, gold_url=str, candidates=list)
        candidates = {}
        for entry in listed:
            address, links = fields(entry, where, url=str, in_links=int)
            # The entry's own title lacks what tells homonyms apart: "London" for London_(punk_band).
            title = _article(address, where)
            candidates[title] = Candidate(title, prior=float(links))
        return surface, "" if url == "NIL" else _article(url, where), list(candidates.values())


class _CandidateCases(_Benchmark):
    """Documents beside the candidate lists that ReFinED offers for them, line by line; entities are Wikidata's."""

    def _questions(self) -> Iterator[MentionQuestion]:
        for left, right in zip_longest(read_json_lines(self.documents), read_json_lines(self.candidates)):
            if left is None or right is None:
                what = f"the other file ends before this line; {self.documents.name} and {self.candidates.name} must"
                raise BadInput((left or right)[0], f"{what} have a line for each document", "get both again")
            where, document = left
            try:
                text, labels = _document(document, where)
                cases = self._cases(right[1], right[0], text)
            except DataError as error:
                refuse(error)
                continue
            for order, (span, entity, name) in enumerate(labels, start=1):
                if span not in cases:
                    self.skipped["mention without a candidate list"] += 1
                    continue
                if entity.startswith("<") and entity != NIL:
                    self.skipped[f"gold entity {entity}"] += 1  # linked, but to what Wikidata does not have
                    continue
                titles = _titles(cases[span])
                gold = "" if entity == NIL else titles.get(entity, name)
                if entity not in titles and gold in titles.values():
                    gold = f"{name} ({entity})"  # no candidate, but a namesake of one
                source = f"{Path(where).name}, mention {order}"
                yield self._question(text, span, [Candidate(title) for title in titles.values()], gold, source)

    @staticmethod
    def _cases(records: Any, where: str, text: str) -> dict[Span, dict[str, str]]:
        """For each span its candidates: entity id -> name."""
        if not isinstance(records, list):
            raise BadInput(where, f"wanted a list of cases, got {kind_of(records)}", "put [ ] around them")
        cases = {}
        for record in records:
            span, surface, listed = fields(record, where, span=list, text=str, candidates=list)
            start, end = _span(span, text, where)
            if text[start:end] != surface:
                what = f"{surface[:60]!r} is said to stand at {span}, but the document has {text[start:end][:60]!r}"
                raise BadInput(where, what, "correct 'span' or 'text'; do the two files belong together?", "span")
            cases[start, end] = dict(fields(entry, where, entity_id=str, name=str) for entry in listed)
        return cases


class Kore50(_CandidateCases):
    """KORE50: 144 highly ambiguous mentions (first names, short names) in 50 short texts, 143 with usable gold.

    Args:
        folder: holds kore50.benchmark.jsonl and refined.kore50.eval_cases.jsonl.
        context_characters: how much text around the mention to give, in characters.
        limit: read only so many mentions, from the start.
    """

    name = "kore50"
    files = ("kore50.benchmark.jsonl", "refined.kore50.eval_cases.jsonl")


class Rss500(_CandidateCases):
    """RSS-500: 1,000 mentions in 500 sentences from news feeds: 518 linked, 476 of no known entity, 6 unusable.

    Args:
        folder: holds rss-500.benchmark.jsonl and refined.rss-500.eval_cases.jsonl.
        context_characters: how much text around the mention to give, in characters.
        limit: read only so many mentions, from the start.
    """

    name = "rss500"
    files = ("rss-500.benchmark.jsonl", "refined.rss-500.eval_cases.jsonl")


def _document(record: Any, where: str) -> Document:
    text, labels = fields(record, where, text=str, labels=list)
    read = []
    for label in labels:
        span, entity, name = fields(label, where, span=list, entity_id=str, name=str)
        read.append((_span(span, text, where), entity, name))
    return text, sorted(read)


def _span(span: list[Any], text: str, where: str) -> Span:
    match span:
        case [int(start), int(end)] if 0 <= start < end <= len(text):
            return start, end
    what = f"span {str(span)[:60]} is no part of a text of {len(text):,} characters"
    raise BadInput(where, what, "give [start, end], counted in characters from 0, start before end", "span")


def _article(url: str, where: str) -> str:
    _, wiki, page = url.partition("/wiki/")
    if not wiki or not page:
        what = f"{url[:80]!r} is no address of a Wikipedia article"
        raise BadInput(where, what, "write https://en.wikipedia.org/wiki/Title", "url")
    return unquote(page).replace("_", " ")


def _titles(names: dict[str, str]) -> dict[str, str]:
    """Entity id -> title: the name, followed by the id where several entities share it."""
    shared = Counter(names.values())
    return {entity: name if shared[name] == 1 else f"{name} ({entity})" for entity, name in names.items()}
