"""The tables of the made-up world: which kinds of things there are, and the plain words in their facts.

Knows no entity. Made-up data for demonstration.
"""

KINDS = {"person": 0.37, "place": 0.24, "organisation": 0.13, "work": 0.13, "species": 0.13}

# The category is the word in the parentheses of an ambiguous title, so it differs between namesakes.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "person": (
        "painter",
        "poet",
        "novelist",
        "composer",
        "singer",
        "filmmaker",
        "dancer",
        "explorer",
        "sailor",
        "botanist",
        "doctor",
        "judge",
        "engineer",
        "merchant",
    ),
    "place": ("town", "river", "lake", "mountain", "island", "forest", "valley"),
    "organisation": ("company", "band", "museum", "newspaper", "university", "choir", "theatre", "bank"),
    "work": ("novel", "film", "opera", "painting", "album", "poem"),
    "species": ("beetle", "orchid", "bird", "fish", "moss", "frog", "moth"),
}
TOWN_SHARE = 0.5

# Who may have made, mapped, described or published what.
MAKERS: dict[str, tuple[str, ...]] = {
    "novel": ("novelist", "poet"),
    "film": ("filmmaker", "dancer"),
    "opera": ("composer", "singer"),
    "painting": ("painter",),
    "album": ("singer", "composer"),
    "poem": ("poet", "novelist"),
}
EXPLORERS = ("explorer", "sailor", "engineer", "merchant")
NATURALISTS = ("botanist", "doctor", "explorer")
RULERS = ("judge", "merchant", "sailor")
PLANTS = ("orchid", "moss")
PUBLISHERS = ("newspaper", "museum", "theatre", "university", "company")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LITERALS: dict[str, tuple[str, ...]] = {
    "instrument": _words("flute violin drum harp organ trumpet cello piano guitar horn lute bassoon"),
    "collection": _words("spoons coins shells masks clocks stamps knives bottles lamps keys swords fans toys rugs"),
    "known_for": _words(
        "glass salt wool honey paper rope silk soap cheese wine copper tea leather amber tin linen pepper steel "
        "marble ink wax butter cotton bricks"
    ),
    "emblem": _words(
        "lion bell anchor key tower wolf crown rose hammer ship eagle wheel star candle bear bridge sun boot "
        "dolphin arrow"
    ),
    "currency": _words("dalo mirk senta tolm fenno bruk korin pessa"),
    "feature": _words("caves cliffs springs ruins pines swamps dunes geysers fossils waterfalls bridges winds crabs"),
    "legend": _words("dragon giant ghost witch mermaid serpent dwarf monk hermit bandit prince unicorn"),
    "theme": _words(
        "exile love war hunger revenge friendship grief greed justice freedom loyalty winter childhood madness "
        "faith poverty"
    ),
    "diet": _words("nectar algae seeds ants worms roots snails berries bark pollen mice flies"),
    "plant_diet": _words("mud rain dew ash sand fog clay compost"),
    "colour": _words("red yellow blue green black white purple orange brown grey pink silver golden"),
}

# Facts in the definition, in order; those with no object are left out.
DEFINING: dict[str, tuple[str, ...]] = {
    "person": ("birthplace", "employer", "spouse"),
    "town": ("located_in", "known_for"),
    "country": ("capital", "currency"),
    "place": ("located_in", "near", "explorer"),
    "organisation": ("headquarters", "founded_by"),
    "work": ("author", "set_in"),
    "species": ("habitat", "described_by"),
}

# Short descriptions, the plainest first; the next one is taken where two entities would share it.
DESCRIPTIONS: dict[str, tuple[str, ...]] = {
    "person": ("{category} from {birthplace}", "{category} from {birthplace} ({birth_year}–{death_year})"),
    "town": (
        "town in {located_in} known for {known_for}",
        "town in {located_in} known for {known_for} and its {emblem} emblem",
    ),
    "country": ("country with the capital {capital}",),
    "place": (
        "{category} near {near}",
        "{category} near {near} mapped by {explorer}",
        "{category} near {near} with {feature}",
    ),
    "organisation": (
        "{category} in {headquarters}",
        "{category} in {headquarters} founded in {founding_year}",
        "{category} in {headquarters} founded by {founded_by}",
    ),
    "work": ("{category} by {author}", "{publication_year} {category} by {author}"),
    "species": (
        "{category} of {habitat}",
        "{colour} {category} of {habitat}",
        "{category} of {habitat} feeding on {diet}",
    ),
}

YEARS = ("birth_year", "death_year", "founding_year", "publication_year")
