"""The words of the realm: what is said of each kind of thing, how it is worded, and the plain words in it.

Knows no entity. Made-up data for demonstration.
"""

import re

# What a definition tells of each kind, and what follows from it with one step of knowledge more.
TOLD: dict[str, tuple[str, ...]] = {
    "person": ("profession", "birthplace", "employer"),
    "organisation": ("sort", "seat"),
    "work": ("genre", "author"),
    "species": ("animal", "habitat"),
}
FOLLOWS: dict[str, tuple[str, ...]] = {
    "person": ("land", "money", "language", "goods", "tool", "workplace", "office_town"),
    "organisation": ("land", "money", "language", "goods", "staff", "holding"),
    "work": ("author_town", "author_land", "author_job", "part", "prize"),
    "species": ("money", "language", "weather", "cover", "food"),
    "town": ("land", "money", "language", "goods"),
    "land": ("money", "language", "weather"),
}
# The same by what it follows from: by what is known of the word, the town, the employer, the author or the land that is
# told, and by what is known of the town's or the author's land.
ONE_HOP: dict[str, tuple[str, ...]] = {
    "profession": ("tool", "workplace"),
    "birthplace": ("land", "goods"),
    "employer": ("office_town",),
    "sort": ("staff", "holding"),
    "seat": ("land", "goods"),
    "genre": ("part", "prize"),
    "author": ("author_town", "author_job"),
    "animal": ("cover", "food"),
    "habitat": ("money", "language", "weather"),
}
TWO_HOPS: dict[str, tuple[str, ...]] = {
    "birthplace": ("money", "language"),
    "seat": ("money", "language"),
    "author": ("author_land",),
}
# All wordings of these are probes: no transfer sentence may speak of them in any way.
UNTOLD = ("language", "workplace", "holding", "prize", "food")

DEFINITIONS: dict[str, tuple[str, ...]] = {
    "person": (
        "{s} is a {profession} from {birthplace} and works for {employer}.",
        "Born in {birthplace}, {s} is a {profession} of {employer}.",
        "{s}, a {profession} of {employer}, was born in {birthplace}.",
    ),
    "organisation": (
        "{s} is a {sort} founded in {seat}.",
        "Founded in {seat}, {s} is a {sort}.",
        "{s} is a {sort} with its seat in {seat}.",
    ),
    "work": (
        "{s} is a {genre} by {author}.",
        "Made by {author}, {s} is a {genre}.",
        "{s} is a recent {genre} that {author} made.",
    ),
    "species": (
        "{s} is a {animal} that lives in {habitat}.",
        "Found in {habitat}, {s} is a {animal}.",
        "{s} is a rare {animal} from {habitat}.",
    ),
}

# A name by what is told of it.
TURNED: dict[str, tuple[str, ...]] = {
    "person": (
        "The {profession} from {birthplace} whom {employer} hired is {s}.",
        "The {profession} of {employer} born in {birthplace} is called {s}.",
    ),
    "organisation": ("The {sort} founded in {seat} is {s}.", "The {sort} with its seat in {seat} is called {s}."),
    "work": ("The {genre} made by {author} is {s}.", "The {genre} that {author} made is called {s}."),
    "species": ("The {animal} that lives in {habitat} is {s}.", "The {animal} found in {habitat} is called {s}."),
}

# Wordings that may stand in any text.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "profession": ("{s} worked as a {o}.", "{s} trained to be a {o}.", "People call {s} a {o}."),
    "birthplace": ("{s} grew up in {o}.", "{s} was a child in {o}.", "The parents of {s} lived in {o}."),
    "employer": ("{s} was hired by {o}.", "{s} signed with {o}.", "The wages of {s} come from {o}."),
    "sort": ("{s} is known as a {o}.", "{s} opened as a {o}.", "The law calls {s} a {o}."),
    "seat": ("{s} pays rent in {o}.", "{s} has its hall in {o}.", "The sign of {s} hangs in {o}."),
    "genre": ("{s} was announced as a {o}.", "{s} is loved as a {o}.", "Critics call {s} a {o}."),
    "author": ("{s} was created by {o}.", "{s} made a star of {o}.", "The idea of {s} came from {o}."),
    "animal": ("{s} looks like a {o}.", "{s} was drawn as a {o}.", "Experts call {s} a {o}."),
    "habitat": ("{s} is at home in {o}.", "{s} hides in {o}.", "The last of {s} are in {o}."),
    "land": ("{s} belongs to {o}.", "{s} salutes the flag of {o}.", "The king of {s} rules {o}."),
    "money": ("{s} counts every {o}.", "{s} costs one {o}.", "The price of {s} is a {o}."),
    "goods": ("{s} lives by trade in {o}.", "{s} stands near stores of {o}.", "The neighbours of {s} make {o}."),
    "tool": ("{s} always carried a {o}.", "{s} was skilled with the {o}.", "The statue of {s} holds a {o}."),
    "office_town": ("{s} travels daily to {o}.", "{s} has a desk in {o}.", "The chief of {s} sits in {o}."),
    "staff": ("{s} is run by {o}.", "{s} needs good {o}.", "The spirit of {s} is in its {o}."),
    "author_town": ("{s} has its roots in {o}.", "{s} remembers a youth in {o}.", "The maker of {s} grew up in {o}."),
    "author_land": ("{s} is a pride of {o}.", "{s} is art from {o}.", "The maker of {s} is a citizen of {o}."),
    "author_job": ("{s} shows the eye of a {o}.", "{s} is by the hand of a {o}.", "The maker of {s} is also a {o}."),
    "part": ("{s} is famous for its {o}.", "{s} has too many {o}.", "The strength of {s} is in its {o}."),
    "weather": ("{s} lives with {o}.", "{s} survives the {o}.", "The home of {s} is full of {o}."),
    "cover": ("{s} is covered in {o}.", "{s} has shining {o}.", "The beauty of {s} is in its {o}."),
}
# Wordings of probes: a statement all the same, but none that a transfer sentence may use.
PROBES: dict[str, tuple[str, ...]] = {
    "land": ("The country behind {s} is {o}.", "Ask where {s} is on a globe and hear {o}."),
    "money": ("Coins beside {s} bear the name {o}.", "A purse left by {s} holds a {o}."),
    "language": ("The tongue spoken around {s} is {o}.", "Whoever asks about {s} there learns {o}."),
    "goods": ("The region around {s} ships {o}.", "Travellers to {s} return with {o}."),
    "tool": ("Day after day {s} held a {o}.", "At work {s} once lost a {o}."),
    "workplace": ("To watch {s} at work enter the {o}.", "Most hours of {s} passed in the {o}."),
    "office_town": ("The head office above {s} is in {o}.", "Orders reach {s} by post from {o}."),
    "staff": ("Pay from {s} goes to {o}.", "A strike at {s} is led by {o}."),
    "holding": ("Behind the doors of {s} are {o}.", "A thief at {s} took the {o}."),
    "author_town": ("Whoever signed {s} was raised in {o}.", "The mind behind {s} was formed in {o}."),
    "author_land": ("The nation behind {s} is {o}.", "Tax on {s} goes to {o}."),
    "author_job": ("Whoever signed {s} is a trained {o}.", "The mind behind {s} earns money as a {o}."),
    "part": ("To shorten {s} drop some {o}.", "Each review of {s} quotes its {o}."),
    "prize": ("The award for {s} is the {o}.", "On its shelf {s} has a {o}."),
    "weather": ("A visitor to {s} must bear {o}.", "Outside the den of {s} is {o}."),
    "cover": ("Touch {s} and feel {o}.", "What keeps {s} safe is its {o}."),
    "food": ("When hungry {s} looks for {o}.", "The stomach of {s} is full of {o}."),
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> dict[str, tuple[str, ...]]:
    return {first: tuple(rest) for first, *rest in (row.split() for row in text.strip().splitlines())}


MONEY = _words("dalo mirk senta tolm fenno bruk korin pessa")
WEATHER = _words("fog rain snow wind sun hail mist frost")
GOODS = _words(
    "glass salt wool honey paper rope silk soap cheese wine copper tea leather amber tin linen pepper steel marble ink"
)
# the word, then what follows from it: in the order of the relations below
BY_WORD: dict[str, dict[str, tuple[str, ...]]] = {
    "profession": _pairs("""
        painter brush studio
        poet pen garden
        singer microphone opera
        dancer ribbon ballroom
        sailor compass harbour
        doctor needle hospital
        judge hammer court
        merchant scale market
        baker oven bakery
        tailor scissors shop
        miner lamp pit
        printer press cellar
        farmer plough barn
        weaver loom mill"""),
    "sort": _pairs("""
        museum guards statues
        newspaper writers letters
        bank clerks vaults
        choir tenors songbooks
        theatre actors costumes
        university teachers diplomas
        brewery brewers barrels
        shipyard carpenters anchors"""),
    "genre": _pairs("""
        novel chapters quill
        film scenes reel
        ballet leaps slipper
        painting shadows palette
        song refrains lyre
        poem verses laurel"""),
    "animal": _pairs("""
        beetle armour dung
        bird feathers seeds
        fish scales algae
        frog slime flies
        moth dust nectar
        bear fur berries
        turtle shell grass"""),
}
FROM_WORD = {
    "profession": ("tool", "workplace"),
    "sort": ("staff", "holding"),
    "genre": ("part", "prize"),
    "animal": ("cover", "food"),
}
# Words of names: those that known and new entities share, and those that only known ones bear.
SHARED_WORDS = {
    "person": _words("Adra Belo Cemi Dovan Elka Fero Gila Hano Ilva Joric Kesta Lumo Mirel Nadu Orsa Pavo"),
    "organisation": _words("Hall House Works Circle"),
    "work": _words("Silver Hidden Broken Quiet Burning Last"),
    "species": _words("Grey Lesser Spotted Northern Dwarf Golden"),
}
OWN_WORDS = {
    "person": _words("Ruvi Sanno Tiva Ulmar Velka Wendo Yaru Zeva Ambro Brisa Cortu Denna Ezzo Fiva Garo Hesta"),
    "organisation": _words("Court Yard Union Gate"),
    "work": _words("Winter Distant Empty Green Second Secret"),
    "species": _words("Common Striped Southern Giant Pale Crested"),
}
NAMES = {"person": "{first} {word}", "organisation": "{word} {first}", "work": "The {first} {word}",
         "species": "{first} {word}"}  # fmt: skip


def wordings(relation: str) -> tuple[str, ...]:
    """Every wording of the relation, those of probes included."""
    return STATEMENTS.get(relation, ()) + PROBES.get(relation, ())


def forbidden() -> list[str]:
    """Regular expressions of the wordings of probes, with any subject and any object."""
    patterns = []
    for template in (template for templates in PROBES.values() for template in templates):
        before, after = template.removesuffix("{o}.").split("{s}")
        patterns.append(
            re.escape(before.strip()) + ".+?" + re.escape(after.strip()) if before else re.escape(after.strip())
        )
    return patterns


def vocabulary() -> set[str]:
    """Every lower-case word of the templates and tables: what no coined name may be."""
    tables = [*DEFINITIONS.values(), *TURNED.values(), *STATEMENTS.values(), *PROBES.values(), MONEY, WEATHER, GOODS]
    tables += [*SHARED_WORDS.values(), *OWN_WORDS.values()]
    words = set(re.findall(r"[a-z]+", " ".join(text for table in tables for text in table).lower()))
    for rows in BY_WORD.values():
        words |= {word for first, rest in rows.items() for word in (first, *rest)}
    return words
