"""ECBD: entities newer than a model, and sentences of Wikipedia about them with a span left out.

Knows the files, not how a span is scored. `entity_inferences` reads files of the same form.
"""

import hashlib
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.editing.probes import Continuation, Fact, Knowledge, KnowledgeSource, Probe, check_facts
from kedit.editing.problems import BadInput, each, refuse_empty
from kedit.editing.records import existing_file, fields, read_json_lines, strings

_SENTINEL = re.compile(r"<extra_id_\d+>")
# one space belongs to the sentinel on either side; further ones (no-break spaces, say) to the span
_MARKED = re.compile(r"<extra_id_0> ?(.*\S.*?) ?<extra_id_1>", re.DOTALL)


def unmarked(label: str, where: str) -> str:
    """The span of `<extra_id_0> SPAN <extra_id_1>`.

    Raises:
        DataError: the label has another form, or no span.
    """
    found = _MARKED.fullmatch(label)
    if found is None or _SENTINEL.search(found[1]):
        what = f"the label is {label[:80]!r}, wanted '<extra_id_0> SPAN <extra_id_1>'"
        raise BadInput(where, what, "write the right words between the two", "label")
    return found[1]


def sides(sentence: str, where: str) -> tuple[str, str]:
    """What stands before and behind the one `<extra_id_0>` of a sentence.

    Raises:
        DataError: the sentence has none, or another sentinel too.
    """
    if _SENTINEL.findall(sentence) != ["<extra_id_0>"]:
        what = f"the probe sentence is {sentence[:80]!r}, wanted exactly one <extra_id_0> in it"
        raise BadInput(where, what, "put it where the span is left out", "probe_sentence")
    left, _, right = sentence.partition("<extra_id_0>")
    return left, right


def template(record: Any, where: str, **kinds: type) -> list[Any]:
    """The named values of `probe_sentences.template_0`, as `fields` gives them."""
    (templates,) = fields(record, where, probe_sentences=dict)
    (only,) = fields(templates, where, template_0=dict)
    return fields(only, where, **kinds)


class Clozes(KnowledgeSource):
    """A file of probes, each record with its entity's definition and transfer sentences. JSON lines, by any name.

    Args:
        file: the records.
        specificity: records about other, popular entities; without it there is no such set.
        validation: share of the entities on which methods are tuned and which are not judged.
        seed: which entities these are: the same ones in every run and on every machine.
    """

    def __init__(
        self, file: str | Path, specificity: str | Path | None = None, validation: float = 0.0, seed: int = 0
    ) -> None:
        if not 0 <= validation < 1:
            remedy = "give the share of entities to tune on, at least 0, below 1"
            raise BadInput("", f"validation is {validation}", remedy, "validation")
        self.file = existing_file(file, "file")
        self.specificity = None if specificity is None else existing_file(specificity, "specificity")
        self.validation = validation
        self.seed = seed

    def load(self) -> Knowledge:
        facts: dict[str, Fact] = {}
        probes: list[Probe] = []
        sentences: dict[tuple[str, str], Continuation] = {}  # those that probes share are taken once
        seen: Counter[str] = Counter()

        def read(record: Any, where: str) -> tuple[str, Probe, list[str]]:
            fact, probe = self._read(record, where, seen)
            first = facts.setdefault(fact.id, fact)
            if (first.name, first.definition) != (fact.name, fact.definition):
                what = f"{fact.id[:60]!r} has another name or definition than at {first.where}"
                raise BadInput(where, what, "the probes of an entity must agree in both", "context")
            (written,) = fields(record, where, augmented_probes=list)
            return fact.id, probe, strings(written, where, "augmented_probes")

        for fact_id, probe, written in each(read_json_lines(self.file), read):
            probes.append(probe)
            for text in written:
                if text.strip():
                    sentences.setdefault((fact_id, text), Continuation(fact_id, text, probe.where))
        if not facts:
            refuse_empty(BadInput(str(self.file), "no records", "check 'file'"))
        check_facts(facts.values())
        held = self._held(list(facts))
        judged = [probe for probe in probes if probe.fact not in held]
        return Knowledge(
            facts=[fact for fact in facts.values() if fact.id not in held],
            probes=judged,
            specificity=self._specificity(judged, {fact.name: fact for fact in facts.values()}, seen),
            continuations=list(sentences.values()),
            validation_facts=[fact for fact in facts.values() if fact.id in held],
            validation_probes=[probe for probe in probes if probe.fact in held],
        )

    @abstractmethod
    def _read(self, record: Any, where: str, seen: Counter[str]) -> tuple[Fact, Probe]:
        """The entity of a record and what it asks."""

    def _specificity(
        self, probes: Sequence[Probe], facts: Mapping[str, Fact], seen: Counter[str]
    ) -> dict[str, list[Probe]]:
        found = [] if self.specificity is None else list(popular(self.specificity, facts, seen))
        return {"popular": found} if found else {}

    def _held(self, entities: Sequence[str]) -> set[str]:
        """The entities to tune on: a hash decides, so that their order in the file does not."""
        wanted = round(self.validation * len(entities))
        if self.validation and not 0 < wanted < len(entities):
            what = f"validation is {self.validation}, which leaves {wanted} of {len(entities)} entities to tune on"
            raise BadInput("", what, "both parts need one", "validation")
        return set(
            sorted(entities, key=lambda entity: hashlib.sha256(f"{self.seed} {entity}".encode()).digest())[:wanted]
        )


def numbered(example: str, seen: Counter[str]) -> str:
    """The files' `ex_id` made unique: the second record of one id is "id#2"."""
    seen[example] += 1
    return example if seen[example] == 1 else f"{example}#{seen[example]}"


def popular(path: Path, facts: Mapping[str, Fact], seen: Counter[str]) -> Iterator[Probe]:
    """Probes of a file about popular entities, none of which is among `facts`; `seen` counts ids.

    Raises:
        DataError: a record is malformed, or about one of these; file and line are named.
    """

    def read(record: Any, where: str) -> Probe:
        example, name = fields(record, where, ex_id=str, ent_str=str)
        if name in facts:
            what = f"{name[:60]!r} is also an entity to be learned, at {facts[name].where}"
            raise BadInput(where, what, "what is told of it may change this probe: take it out", "ent_str")
        left, span, right = _cloze(record, where)
        id = numbered(f"popular/{example}", seen)
        return Probe(id, "", left, span, right, group="popular", where=where, entity=name)

    return each(read_json_lines(path), read)


def _cloze(record: Any, where: str) -> tuple[str, str, str]:
    sentence, label = template(record, where, probe_sentence=str, label=str)
    left, right = sides(sentence, where)
    return left, unmarked(label, where), right


class Ecbd(Clozes):
    """Entity Cloze By Date, with transfer sentences: spans of sentences about entities, right context given.

    The file of 2023 has 393 probes of 19 entities. Of the probes one entity (Qubo, a television channel) has 170, so
    that a mean over probes is mostly about Qubo: look at the mean over entities too. Qubo and the Burke and Wills
    expedition (1860-61) are older than any model; 4 probes stand twice, and 122 have an id that came before. All probes
    of an entity share its 15 transfer sentences. The specificity file's 40 probes are few for a claim of locality.

    Args:
        file: for example ecbd_2023_augmented.json (JSON lines).
        specificity: records about other, popular entities, as in specificity_popular_20np_20random.json.
        validation: share of the entities on which methods are tuned and which are not judged.
        seed: which entities these are: the same ones in every run and on every machine.
    """

    name = "ecbd"

    def _read(self, record: Any, where: str, seen: Counter[str]) -> tuple[Fact, Probe]:
        example, name, context = fields(record, where, ex_id=str, ent_str=str, context=str)
        parts = example.rsplit("_", 3)  # a title may hold underscores
        if len(parts) < 4 or not all(part.isdigit() for part in parts[1:]):
            what = f"'ex_id' is {example[:80]!r}, wanted TITLE_PAGEID_PARAGRAPH_SENTENCE"
            raise BadInput(where, what, "write it so, with numbers behind the title", "ex_id")
        title, page = parts[:2]
        fact = Fact(f"{title}_{page}", name, context, (title,) if title != name else (), where)
        left, span, right = _cloze(record, where)
        return fact, Probe(numbered(example, seen), fact.id, left, span, right, group=self.name, where=where)
