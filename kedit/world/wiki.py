"""The made-up world as a wiki: articles, redirects and disambiguation pages, as a pages-articles dump.

Made-up data for demonstration. Knows the world's facts and wording; no reader of dumps and no model.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kedit.editing.sources import DataError, WikiSource
from kedit.world import kinds, text
from kedit.world.entities import Entity
from kedit.world.facts import World
from kedit.world.mediawiki import page_xml, write_dump
from kedit.world.paragraphs import Paragraph, Sentences

MADE_BY = ("creation", "entities", "facts", "kinds", "mediawiki", "names", "paragraphs", "text", "wiki")
OWN_ARTICLE = 0.12
PER_ARTICLE = 2  # paragraphs about one entity in the article of another
SECTIONS = {
    "person": "People",
    "place": "Places",
    "organisation": "Organisations",
    "work": "Works",
    "species": "Nature",
}


class WorldWiki(WikiSource):
    """Wikipedia of a made-up world, for demonstration: same arguments, same bytes.

    Args:
        entities: how many entities have an article, at least 200.
        seed: another seed is another world.
        paragraphs: how many paragraphs, spread over the articles, mention an entity by a link.
    """

    def __init__(self, entities: int = 320, seed: int = 0, paragraphs: int = 20):
        if paragraphs < 1:
            raise DataError(f"{paragraphs} paragraphs an entity: at least 1 is needed; raise `paragraphs`")
        self.entities, self.seed, self.paragraphs = entities, seed, paragraphs

    @property
    def fingerprint(self) -> str:
        """Of the arguments and of the code that writes the wiki."""
        digest = hashlib.sha256(f"{self.entities} {self.seed} {self.paragraphs}".encode())
        for module in MADE_BY:
            digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
        return f"world-{self.entities}-{self.seed}-{self.paragraphs}-{digest.hexdigest()[:16]}"

    def write(self, folder: Path) -> list[Path]:
        """Write the dump, of many bz2 streams as Wikipedia's multistream dumps, and return its path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"world{self.entities}-seed{self.seed}-pages-articles-multistream.xml.bz2"
        part = path.with_name(path.name + ".part")
        write_dump(part, self.pages())
        part.replace(path)  # a reader never meets half a dump
        return [path]

    def articles(self, world: World) -> list[list[Paragraph]]:
        """For each entity the paragraphs that its article holds."""
        rng = random.Random(self.seed + 1)
        sentences = Sentences(world, rng)
        related: list[list[int]] = [[] for _ in world.entities]
        for fact in world.facts:
            if fact.object is not None:
                related[fact.subject].append(fact.object)
                related[fact.object].append(fact.subject)
        limit = 2 * self.paragraphs
        articles: list[list[Paragraph]] = [[] for _ in world.entities]
        for entity in world.entities:
            used = Counter(dict.fromkeys(world.namesakes(entity.id), PER_ARTICLE))
            for paragraph in sentences.about(entity, self.paragraphs):
                host = entity.id if rng.random() < OWN_ARTICLE else rng.choice(related[entity.id])
                # spread: none in a namesake's article, few of the same entity in one, and no article without end
                while host != entity.id and (used[host] >= PER_ARTICLE or len(articles[host]) >= limit):
                    host = rng.randrange(len(world.entities))
                used[host] += 1
                paragraph.host = host
                articles[host].append(paragraph)
        return articles

    def pages(self) -> Iterator[str]:
        """Every page as XML, in the order of page ids."""
        world = World(self.entities, self.seed)
        articles = self.articles(world)
        rng = random.Random(self.seed + 2)
        number = 0

        def page(title: str, body: str, redirect: str = "", namespace: int = 0) -> str:
            nonlocal number
            number += 1
            return page_xml(number, title, body, redirect, namespace)

        for kind in kinds.KINDS:
            yield page(f"Template:Infobox {kind}", "<includeonly>{{{name}}}</includeonly>", namespace=10)
            yield page(f"Category:{SECTIONS[kind]}", "Made-up data for demonstration.", namespace=14)
        named: set[str] = set()
        for entity in world.entities:
            yield page(entity.title, article(world, entity, articles[entity.id], rng))
            for alias in entity.aliases:
                yield page(alias, f"#REDIRECT [[{entity.title}]]\n\n{{{{R from other name}}}}", entity.title)
            if entity.name in named or not world.namesakes(entity.id):
                continue
            named.add(entity.name)
            title = f"{entity.name} (disambiguation)" if entity.name in world.by_title else entity.name
            yield page(title, disambiguation(world, entity.name))
            if title == entity.name:
                yield page(f"{title} (disambiguation)", f"#REDIRECT [[{title}]]", title)


def article(world: World, entity: Entity, paragraphs: list[Paragraph], rng: random.Random) -> str:
    """Wikitext: templates, the lead with the definition, and sections of paragraphs about others."""
    facts = world.facts_of(entity.id)
    rows = "".join(
        f"| {fact.relation} = {fact.value if fact.object is None else wikilink(world, fact.object, fact.value)}\n"
        for fact in facts
    )
    lead = world.definition(entity.id)
    for fact in facts:
        if fact.object is not None and not world.namesakes(fact.object):
            lead, linked = re.subn(rf"\b{fact.value}\b", wikilink(world, fact.object, fact.value), lead, count=1)
            if linked:
                break
    parts = [
        f"{{{{Short description|{entity.description}}}}}",
        f"{{{{Infobox {entity.kind}\n| name = {entity.name}\n{rows}}}}}",
        f"'''{entity.name}'''" + lead.removeprefix(entity.name) + reference(rng, always=True),
    ]
    if paragraphs:
        parts.append(wikitext(world, paragraphs[0], rng))
    for kind, heading in SECTIONS.items():
        section = [one for one in paragraphs[1:] if world.entities[one.target].kind == kind]
        if section:
            parts.append(f"== {heading} ==")
            parts += [wikitext(world, one, rng) for one in section]
    parts += ["== References ==", "{{reflist}}"]
    parts.append(f"[[Category:{SECTIONS[entity.kind]}]]\n[[Category:{text.capital(entity.category)}]]")
    return "\n\n".join(parts)


def wikitext(world: World, paragraph: Paragraph, rng: random.Random) -> str:
    """The paragraph with its links marked up, some by way of a redirect or to a section."""
    plain, done, parts = paragraph.text, 0, []
    for start, end, target in paragraph.links:
        entity = world.entities[target]
        title = rng.choice(entity.aliases) if entity.aliases and rng.random() < 0.1 else entity.title
        if rng.random() < 0.03:
            title += f"#{SECTIONS[entity.kind]}"
        link = f"[[{plain[start:end]}]]" if title == plain[start:end] else f"[[{title}|{plain[start:end]}]]"
        parts += [plain[done:start], f"''{link}''" if entity.kind == "work" else link]
        done = end
    return "".join([*parts, plain[done:]]) + reference(rng)


def wikilink(world: World, entity: int, surface: str) -> str:
    title = world.entities[entity].title
    return f"[[{title}]]" if title == surface else f"[[{title}|{surface}]]"


def reference(rng: random.Random, always: bool = False) -> str:
    if not always and rng.random() > 0.15:
        return ""
    return f"<ref>{{{{cite book |title=Old records |page={rng.randrange(1, 400)}}}}}</ref>"


def disambiguation(world: World, name: str) -> str:
    entities = [world.entities[id] for id in world.by_name[name]]
    lines = "\n".join(
        f"* [[{entity.title}]], {entity.description[0].lower()}{entity.description[1:]}" for entity in entities
    )
    return f"'''{name}''' may refer to:\n\n{lines}\n\n{{{{Disambiguation}}}}"
