"""Paragraphs about entities of the made-up world, each telling its entity apart from those of the same name.

Made-up data for demonstration. Knows no markup.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from kedit.world import text
from kedit.world.entities import Entity, Fact
from kedit.world.facts import World

TRIES = 40
BESIDE_NAME = 0.5  # share of paragraphs with "the painter Maro" in place of "Maro"
LINKED_OBJECTS = 0.3  # share of paragraphs that also link an object, where its name is its own


@dataclass(slots=True)
class Paragraph:
    """One paragraph of an article, about one entity.

    Args:
        text: plain text.
        links: (start, end, entity) in order; no two overlap.
        target: the entity that the paragraph is about and mentions by a link.
        host: the entity in whose article it stands.
        facts: what it says of the target.
    """

    text: str
    links: list[tuple[int, int, int]]
    target: int
    host: int = -1
    facts: tuple[Fact, ...] = ()


@dataclass
class Sentences:
    """Writes paragraphs about entities, no text twice.

    Args:
        world: whose facts.
        rng: where the choices come from.
    """

    world: World
    rng: random.Random
    seen: set[str] = field(default_factory=set)

    def about(self, entity: Entity, count: int) -> Iterator[Paragraph]:
        """Up to `count` paragraphs, each with two of the facts that tell the entity apart from its namesakes.

        Pairs of facts are used up before one comes again, so most unseen paragraphs are new combinations of facts
        that other paragraphs state in other words.
        """
        clues = self.world.clues(entity.id)
        pairs = [(one, other) for place, one in enumerate(clues) for other in clues[:place]]
        order: list[tuple[Fact, Fact]] = []
        for _ in range(count):
            if not order:
                order = self.rng.sample(pairs, len(pairs))
            facts = order.pop()
            for _ in range(TRIES):
                paragraph = self._write(entity, facts if self.rng.random() < 0.5 else facts[::-1])
                if paragraph.text not in self.seen and entity.description.lower() not in paragraph.text.lower():
                    self.seen.add(paragraph.text)
                    yield paragraph
                    break

    def _write(self, entity: Entity, facts: tuple[Fact, ...]) -> Paragraph:
        rng = self.rng
        first, second = (rng.choice(text.STATEMENTS[fact.relation]) for fact in facts)
        # nine times in ten the entity is also called what it is, beside its name or where it comes up again
        told = bool({fact.relation for fact in facts} & {"category", "occupation"})
        prefix = f"the {entity.category} " if not told and rng.random() < BESIDE_NAME else ""
        again = rng.random()
        if not told and not prefix and again < 0.7:
            calls = f"the {entity.category}"
        elif again < 0.9 and second.startswith("{s} "):
            calls = entity.pronoun.lower()
        else:
            calls = entity.name
        one, start = self._clause(first, facts[0], prefix + entity.name)
        start += len(prefix)
        two, _ = self._clause(second, facts[1], calls)
        style = rng.random()
        if style < 0.4:
            opener = rng.choice(text.OPENERS)
            glue = " " if opener.endswith("that") else ", "
            one, start = opener + glue + one, start + len(opener + glue)
        body = f"{text.capital(one)}. {text.capital(two)}" if rng.random() < 0.6 else f"{text.capital(one)}, and {two}"
        if style > 0.3:
            body += ", " + rng.choice(text.CLOSERS)
        return Paragraph(body + ".", self._links(body, entity, start, facts), entity.id, facts=facts)

    @staticmethod
    def _clause(template: str, fact: Fact, subject: str) -> tuple[str, int]:
        """The clause as it stands inside a sentence, and where its subject starts."""
        if not template.startswith("{"):
            template = template[0].lower() + template[1:]
        start = len(text.fill(template[: template.index("{s}")], subject, fact.value))
        return text.fill(template, subject, fact.value), start

    def _links(self, body: str, entity: Entity, start: int, facts: tuple[Fact, ...]) -> list[tuple[int, int, int]]:
        links = [(start, start + len(entity.name), entity.id)]
        if self.rng.random() < LINKED_OBJECTS:
            for fact in facts:
                # an ambiguous object is not linked: the paragraph does not tell it apart
                if fact.object is None or self.world.namesakes(fact.object):
                    continue
                found = re.search(rf"\b{fact.value}\b", body)
                if found:
                    links.append((*found.span(), fact.object))
                    break
        return sorted(links)
