"""Makes the made-up world: names that are shared, categories, facts that agree with each other, titles, descriptions.

Knows the tables in `kinds` and what may not be: two namesakes of which the same is said, an author not yet born.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from kedit.world import kinds, text
from kedit.world.entities import Entity, Fact
from kedit.world.names import Names

AMBIGUOUS_SHARE = 0.75
ONE_KIND = 0.4  # share of the groups of namesakes that are of one kind by intention
GROUP_SIZES = {2: 0.35, 3: 0.35, 4: 0.2, 5: 0.1}
TRIES = 60


class Creation:
    """Entities, their facts by id, their ids by name, and how often each value is said of entities of a name.

    Args:
        count: how many entities.
        rng: where the choices come from.
    """

    def __init__(self, count: int, rng: random.Random):
        self.rng = rng
        self.entities: list[Entity] = []
        self.facts: list[list[Fact]] = []
        self.by_name: dict[str, list[int]] = defaultdict(list)
        # namesakes should not share a value: it could not tell them apart
        self.said: dict[str, Counter[str]] = defaultdict(Counter)
        self._name(count)
        self._categorise()
        self._give_facts()
        self._entitle()

    # -- names and categories

    def _name(self, count: int) -> None:
        rng = self.rng
        literals = {word for words in kinds.LITERALS.values() for word in words}
        nouns = {word for words in kinds.CATEGORIES.values() for word in words}
        names = Names(rng, text.vocabulary() | literals | nouns)
        firsts = [names.word() for _ in range(30)]
        countries = max(4, int(count**0.5 / 2.2))
        for _ in range(countries):
            self._add("place", names.word(), "country")
        left = {kind: int(share * (count - countries)) for kind, share in kinds.KINDS.items()}
        left["person"] += count - countries - sum(left.values())

        def take(kind: str = "") -> str:
            kind = kind or rng.choices(list(left), list(left.values()))[0]
            left[kind] -= 1
            return kind

        shared = countries + int(AMBIGUOUS_SHARE * count)
        while len(self.entities) < count:
            size = rng.choices(list(GROUP_SIZES), list(GROUP_SIZES.values()))[0] if len(self.entities) < shared else 1
            first = take()
            one_kind = rng.random() < ONE_KIND and left[first] >= size - 1
            group = [first, *(take(first if one_kind else "") for _ in range(size - 1))]
            # a name that tells a person from a place would decide what the context should
            one_name = f"{rng.choice(firsts)} {names.word()}" if set(group) == {"person"} else names.word()
            for kind in group:
                self._add(kind, one_name)

    def _add(self, kind: str, name: str, category: str = "") -> None:
        entity = Entity(len(self.entities), kind, name, category)
        if kind == "person":
            entity.pronoun = self.rng.choice(("He", "She"))
        self.entities.append(entity)
        self.facts.append([])
        self.by_name[name].append(entity.id)

    def _categorise(self) -> None:
        counts: Counter[str] = Counter()
        for ids in self.by_name.values():
            used: set[str] = set()
            for entity in (self.entities[id] for id in ids):
                if entity.category:
                    continue
                if entity.kind == "place" and "town" not in used and self.rng.random() < kinds.TOWN_SHARE:
                    entity.category = "town"
                else:
                    free = [word for word in kinds.CATEGORIES[entity.kind] if word not in used and word != "town"]
                    # the rarest so far, so that even a small world has painters for its paintings
                    entity.category = min(free, key=lambda word: (counts[word], self.rng.random()))
                    counts[entity.category] += 1
                used.add(entity.category)

    # -- facts

    def _of(self, shape: str, categories: Sequence[str] = ()) -> list[Entity]:
        return [
            entity
            for entity in self.entities
            if entity.shape == shape and (not categories or entity.category in categories)
        ]

    def _say(self, entity: Entity, relation: str, value: str | Entity) -> None:
        if isinstance(value, Entity):
            fact = Fact(entity.id, relation, value.name, value.id)
        else:
            fact = Fact(entity.id, relation, value)
        self.facts[entity.id].append(fact)
        self.said[entity.name][fact.value] += 1

    def _draw(
        self,
        entity: Entity,
        relation: str,
        pool: Sequence[Entity],
        fits: Callable[[Entity], bool] | None = None,
        needed: bool = False,
        back: str = "",
    ) -> Entity | None:
        """Say `relation` with a fitting entity that nobody of this name is linked to; `back` is said in return."""
        said = self.said[entity.name]
        for attempt in range(TRIES * (1 + needed)):
            other = self.rng.choice(pool)
            if other.name == entity.name or (fits and not fits(other)):
                continue
            known = said[other.name] or (back and self.said[other.name][entity.name])
            if known and attempt < TRIES:
                continue
            self._say(entity, relation, other)
            if back:
                self._say(other, back, entity)
            return other
        return None

    def _draw_word(self, entity: Entity, relation: str, words: Sequence[str]) -> None:
        free = [word for word in words if not self.said[entity.name][word]]
        self._say(entity, relation, self.rng.choice(free or list(words)))

    def _pair(
        self, entities: list[Entity], relation: str, share: float, fits: Callable[[Entity, Entity], bool]
    ) -> None:
        """Make couples among neighbours in the list: a symmetric relation in which each stands at most once."""
        taken: set[int] = set()
        for place, entity in enumerate(entities):
            if entity.id in taken or self.rng.random() > share:
                continue
            near = [
                other for other in entities[place + 1 : place + 13] if other.id not in taken and fits(entity, other)
            ]
            if near:
                other = self._draw(entity, relation, near, back=relation)
                if other is not None:
                    taken |= {entity.id, other.id}

    def value(self, entity: Entity, relation: str) -> str:
        return next((fact.value for fact in self.facts[entity.id] if fact.relation == relation), "")

    def _year(self, entity: Entity, relation: str) -> int:
        return int(self.value(entity, relation))

    def _give_facts(self) -> None:
        for entity in self.entities:
            self._say(entity, "occupation" if entity.kind == "person" else "category", entity.category)
        towns, people = self._of("town"), self._of("person")
        self._settle(towns, people)
        self._people(people, towns)
        self._lands(people, towns)
        self._organisations(people, towns)
        self._works(people, towns)
        self._species(people)

    def _alive_after(self, year: int) -> Callable[[Entity], bool]:
        return lambda person: self._year(person, "death_year") > year

    def _founded_before(self, year: int) -> Callable[[Entity], bool]:
        return lambda organisation: self._year(organisation, "founding_year") < year

    def _teaches(self, pupil: Entity) -> Callable[[Entity], bool]:
        born = self._year(pupil, "birth_year")
        return lambda person: self._year(person, "birth_year") + 15 <= born and self._alive_after(born + 15)(person)

    def _new_country(self, entity: Entity) -> Callable[[Entity], bool]:
        return lambda place: not self.said[entity.name][self.value(place, "located_in")]

    def _country(self, place: Entity) -> Entity:
        return next(
            self.entities[fact.object]
            for fact in self.facts[place.id]
            if fact.relation == "located_in" and fact.object is not None
        )

    def _settle(self, towns: list[Entity], people: list[Entity]) -> None:
        countries = self._of("country")
        capitals = sorted(towns, key=lambda town: len(self.by_name[town.name]))  # least ambiguous first
        for country, town in zip(countries, capitals, strict=False):
            self._say(country, "capital", town)
            self._say(town, "located_in", country)
            self._draw_word(country, "currency", kinds.LITERALS["currency"])
            self._draw_word(country, "emblem", kinds.LITERALS["emblem"])
        for town in towns:
            if not self.value(town, "located_in"):
                self._draw(town, "located_in", countries, needed=True)
            self._draw_word(town, "known_for", kinds.LITERALS["known_for"])
            self._draw_word(town, "emblem", kinds.LITERALS["emblem"])
            self._draw(town, "mayor", people)
        self._pair(towns, "twin_town", 1.0, lambda one, other: one.name != other.name)

    def _people(self, people: list[Entity], towns: list[Entity]) -> None:
        for person in people:
            birth = self.rng.randrange(1800, 1900)
            self._say(person, "birth_year", str(birth))
            self._say(person, "death_year", str(birth + self.rng.randrange(45, 86)))
        born = {person.id: self._year(person, "birth_year") for person in people}
        for person in people:
            self._draw(person, "birthplace", towns, needed=True)
            self._draw(person, "residence", towns)
            self._draw_word(person, "instrument", kinds.LITERALS["instrument"])
            self._draw_word(person, "collection", kinds.LITERALS["collection"])
            self._draw(person, "mentor", people, self._teaches(person))
        by_age = sorted(people, key=lambda person: born[person.id])
        self._pair(by_age, "spouse", 0.8, lambda one, other: born[other.id] - born[one.id] <= 12)

    def _lands(self, people: list[Entity], towns: list[Entity]) -> None:
        explorers = [person for person in people if person.category in kinds.EXPLORERS]
        for place in self._of("place"):
            town = self._draw(place, "near", towns, self._new_country(place))
            town = town or self._draw(place, "near", towns, needed=True)
            if town is not None:
                self._say(place, "located_in", self._country(town))
            self._draw(place, "explorer", explorers)
            self._draw_word(place, "feature", kinds.LITERALS["feature"])
            self._draw_word(place, "legend", kinds.LITERALS["legend"])
        rulers = [person for person in people if person.category in kinds.RULERS]
        for country in self._of("country"):
            self._draw(country, "ruler", rulers)

    def _organisations(self, people: list[Entity], towns: list[Entity]) -> None:
        organisations = self._of("organisation")
        for entity in organisations:
            founder = self._draw(entity, "founded_by", people, needed=True)
            assert founder is not None
            birth, death = self._year(founder, "birth_year"), self._year(founder, "death_year")
            year = self.rng.randrange(birth + 22, death)
            self._say(entity, "founding_year", str(year))
            self._draw(entity, "headquarters", towns, needed=True)
            self._draw(entity, "leader", people, self._alive_after(year + 5))
            self._draw_word(entity, "emblem", kinds.LITERALS["emblem"])
            self._draw_word(entity, "known_for", kinds.LITERALS["known_for"])
        self._pair(organisations, "rival", 1.0, lambda one, other: one.name != other.name)
        for person in people:
            last = self._year(person, "death_year") - 5
            self._draw(person, "employer", organisations, self._founded_before(last))

    def _works(self, people: list[Entity], towns: list[Entity]) -> None:
        publishers = self._of("organisation", kinds.PUBLISHERS)
        makers = {
            category: [person for person in people if person.category in jobs]
            for category, jobs in kinds.MAKERS.items()
        }
        for work in self._of("work"):
            author = self._draw(work, "author", makers[work.category], needed=True, back="notable_work")
            assert author is not None
            birth, death = self._year(author, "birth_year"), self._year(author, "death_year")
            year = self.rng.randrange(birth + 20, death)
            self._say(work, "publication_year", str(year))
            self._draw_word(work, "theme", kinds.LITERALS["theme"])
            self._draw(work, "set_in", towns, needed=True)
            self._draw(work, "publisher", publishers, self._founded_before(year + 1))
            self._draw(work, "dedicated_to", people)

    def _species(self, people: list[Entity]) -> None:
        lands, species = self._of("place"), self._of("species")
        naturalists = [person for person in people if person.category in kinds.NATURALISTS]
        animals = [entity for entity in species if entity.category not in kinds.PLANTS]
        for entity in species:
            land = self._draw(entity, "habitat", lands, self._new_country(entity))
            land = land or self._draw(entity, "habitat", lands, needed=True)
            if land is not None:
                self._say(entity, "native_to", self._country(land))
            self._draw(entity, "described_by", naturalists, needed=True)
            self._draw_word(entity, "diet", kinds.LITERALS["plant_diet" if entity.category in kinds.PLANTS else "diet"])
            self._draw_word(entity, "colour", kinds.LITERALS["colour"])
            self._draw(entity, "enemy", animals)

    # -- titles and descriptions

    def _entitle(self) -> None:
        titles: set[str] = set()
        for name, ids in self.by_name.items():
            primary = ids[0] if len(ids) == 1 or self.rng.random() < 0.25 else None
            for entity in (self.entities[id] for id in ids):
                entity.title = name if entity.id == primary else f"{name} ({entity.category})"
                titles.add(entity.title)
        titles |= set(self.by_name)  # the disambiguation pages' titles
        descriptions: set[str] = set()
        for entity in self.entities:
            entity.aliases = tuple(alias for alias in self._aliases(entity) if alias not in titles)
            titles |= set(entity.aliases)
            entity.description = self._describe(entity, descriptions)
            descriptions.add(entity.description)

    def _aliases(self, entity: Entity) -> list[str]:
        name, value = entity.name, partial(self.value, entity)
        match entity.shape:
            case "person":
                return [f"{name} (born {value('birth_year')})"]
            case "country":
                return [f"Republic of {name}"]
            case "town" | "place":
                return [f"{name}, {value('located_in')}"]
            case "work":
                return [f"{name} ({value('publication_year')} {entity.category})"]
            case _:
                return [f"{name} {entity.category}"]

    def _describe(self, entity: Entity, taken: set[str]) -> str:
        values = {fact.relation: fact.value for fact in reversed(self.facts[entity.id])} | {"category": entity.category}
        wordings = [
            text.capital(template.format_map(values))
            for template in kinds.DESCRIPTIONS[entity.shape]
            if all(f"{{{key}}}" not in template or values.get(key) for key in (*text.STATEMENTS,))
        ]
        return next((wording for wording in wordings if wording not in taken), wordings[0])
