"""The made-up wiki is a genuine dump, the same in every process, whose paragraphs tell namesakes apart."""

import bz2
import hashlib
import math
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict

import pytest

from kedit.editing.sources import DataError, WikiSource
from kedit.world import World, WorldWiki
from kedit.world.mediawiki import HEADER, base36_sha1

SPACE = "{http://www.mediawiki.org/xml/export-0.11/}"
LINK = re.compile(r"\[\[([^]|]+)(?:\|([^]]+))?]]")
WORD = re.compile(r"\w+")


@pytest.fixture(scope="module", params=[200, 320, 2000])
def wiki(request):
    return WorldWiki(request.param, seed=0)


@pytest.fixture(scope="module")
def world(wiki):
    return World(wiki.entities, wiki.seed)


@pytest.fixture(scope="module")
def paragraphs(wiki, world):
    return [paragraph for article in wiki.articles(world) for paragraph in article]


@pytest.fixture(scope="module")
def dump(wiki, tmp_path_factory):
    (path,) = wiki.write(tmp_path_factory.mktemp("wiki") / "made" / "here")
    return path


@pytest.fixture(scope="module")
def pages(dump):
    """(namespace, title, redirect or None, wikitext) of each page."""
    root = ElementTree.fromstring(bz2.decompress(dump.read_bytes()))
    found = []
    for page in root.iter(f"{SPACE}page"):
        redirect = page.find(f"{SPACE}redirect")
        found.append(
            (
                int(page.findtext(f"{SPACE}ns")),
                page.findtext(f"{SPACE}title"),
                None if redirect is None else redirect.get("title"),
                page.findtext(f"{SPACE}revision/{SPACE}text"),
            )
        )
    return found


def test_it_is_a_wiki_source_whose_arguments_are_checked():
    assert isinstance(WorldWiki(), WikiSource)
    with pytest.raises(DataError, match="`paragraphs`"):
        WorldWiki(paragraphs=0)


def test_the_fingerprint_follows_the_arguments():
    prints = {
        WorldWiki(*arguments).fingerprint for arguments in [(200, 0, 20), (201, 0, 20), (200, 1, 20), (200, 0, 9)]
    }
    assert len(prints) == 4
    assert WorldWiki(200, 0, 20).fingerprint in prints


def test_streams_of_at_most_a_hundred_pages_between_header_and_footer(dump):
    data, streams = dump.read_bytes(), []
    while data:
        stream = bz2.BZ2Decompressor()
        streams.append(stream.decompress(data).decode())
        data = stream.unused_data
    assert streams[0] == HEADER
    assert streams[-1].strip() == "</mediawiki>"
    assert all(1 <= stream.count("<page>") <= 100 for stream in streams[1:-1])
    assert all(stream.count("<page>") == 100 for stream in streams[1:-2])


def test_same_bytes_in_processes_that_hash_differently(tmp_path):
    code = "import sys; from kedit.world import WorldWiki; WorldWiki(200, 5, 8).write(sys.argv[1])"
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        (path,) = folder.iterdir()
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_another_seed_other_bytes(tmp_path):
    one, other = (WorldWiki(200, seed, 4).write(tmp_path)[0] for seed in (1, 2))
    assert one.read_bytes() != other.read_bytes()


def test_every_entity_has_its_article(pages, world):
    texts = {title: wikitext for namespace, title, redirect, wikitext in pages if namespace == 0 and redirect is None}
    for entity in world.entities:
        wikitext = texts[entity.title]
        assert wikitext.startswith(f"{{{{Short description|{entity.description}}}}}")
        assert f"{{{{Infobox {entity.kind}" in wikitext
        assert f"'''{entity.name}'''" in wikitext
        assert "<ref>" in wikitext
        assert "== References ==" in wikitext
        assert "[[Category:" in wikitext


def test_page_titles_are_unique_and_namespaces_are_named(pages):
    titles = [title for _, title, _, _ in pages]
    assert len(set(titles)) == len(titles)
    assert {namespace for namespace, *_ in pages} == {0, 10, 14}
    assert 'key="10"' in HEADER
    assert 'key="14"' in HEADER


def test_redirects_point_to_articles_and_say_so_twice(pages, world):
    titles = {title for _, title, redirect, _ in pages if redirect is None}
    redirects = {title: (redirect, wikitext) for _, title, redirect, wikitext in pages if redirect is not None}
    for redirect, wikitext in redirects.values():
        assert redirect in titles
        assert wikitext.startswith(f"#REDIRECT [[{redirect}]]")
    for entity in world.entities:
        assert all(redirects[alias][0] == entity.title for alias in entity.aliases)


def test_a_disambiguation_page_lists_all_namesakes(pages, world):
    texts = {title: wikitext for _, title, redirect, wikitext in pages if redirect is None}
    for name, ids in world.by_name.items():
        title = f"{name} (disambiguation)" if name in world.by_title else name
        if len(ids) > 1:
            assert "may refer to:" in texts[title]
            assert "{{Disambiguation}}" in texts[title]
            assert all(f"* [[{world.entities[id].title}]]" in texts[title] for id in ids)
        else:
            assert title not in texts


def test_every_link_leads_somewhere_and_some_by_a_redirect(pages, world):
    titles = {title for namespace, title, _, _ in pages if namespace == 0}
    aliases = {alias for entity in world.entities for alias in entity.aliases}
    targets = [
        match[1].split("#")[0]
        for namespace, _, _, wikitext in pages
        if namespace == 0
        for match in LINK.finditer(wikitext)
        if not match[1].startswith("Category:")
    ]
    assert set(targets) <= titles
    assert 0.02 < sum(target in aliases for target in targets) / len(targets) < 0.2


def test_the_dump_holds_the_paragraphs(pages, paragraphs, world):
    surfaces = Counter()
    for namespace, _, redirect, wikitext in pages:
        if namespace == 0 and redirect is None:
            blocks = re.sub(r"<ref>.*?</ref>|''+", "", wikitext).split("\n\n")
            surfaces.update(LINK.sub(lambda match: match[2] or match[1], block) for block in blocks)
    assert all(surfaces[paragraph.text] == 1 for paragraph in paragraphs)


def test_about_as_many_paragraphs_an_entity_as_asked_for_in_many_articles(wiki, paragraphs, world):
    counts = Counter(paragraph.target for paragraph in paragraphs)
    assert all(0.9 * wiki.paragraphs <= counts[entity.id] <= wiki.paragraphs for entity in world.entities)
    hosts = defaultdict(set)
    for paragraph in paragraphs:
        hosts[paragraph.target].add(paragraph.host)
    assert all(len(articles) >= 7 for articles in hosts.values())
    assert all(not hosts[entity.id] & set(world.namesakes(entity.id)) for entity in world.entities)
    own = sum(paragraph.host == paragraph.target for paragraph in paragraphs) / len(paragraphs)
    assert 0.05 < own < 0.2


def test_no_paragraph_comes_twice_or_gives_its_description_away(paragraphs, world):
    assert len({paragraph.text for paragraph in paragraphs}) == len(paragraphs)
    for paragraph in paragraphs:
        assert world.entities[paragraph.target].description.lower() not in paragraph.text.lower()


def test_links_stand_on_the_surface_form(paragraphs, world):
    for paragraph in paragraphs:
        assert paragraph.target in {target for _, _, target in paragraph.links}
        assert 1 <= len(paragraph.links) <= 2
        end = 0
        for start, stop, target in paragraph.links:
            assert start >= end
            assert paragraph.text[start:stop] == world.entities[target].name
            end = stop


def test_every_ambiguous_mention_stands_beside_a_clue(paragraphs, world):
    for paragraph in paragraphs:
        words = paragraph.text.lower()
        for _, _, target in paragraph.links:
            if not world.namesakes(target):
                continue
            assert target == paragraph.target
            clues = {fact.value.lower() for fact in world.clues(target)}
            assert sum(clue in words for clue in clues) >= 2
            assert {fact.subject for fact in paragraph.facts} == {target}


def test_most_paragraphs_say_what_the_entity_is_and_some_leave_it_to_the_facts(paragraphs, world):
    said = [f" {world.entities[one.target].category}" in one.text for one in paragraphs]
    assert 0.80 <= sum(said) / len(said) <= 0.95


def test_paragraphs_are_short_and_their_words_few(paragraphs, world):
    lengths = [len(paragraph.text.split()) for paragraph in paragraphs]
    assert 15 <= sum(lengths) / len(lengths) <= 22
    if len(world.entities) == 320:
        words = {word for paragraph in paragraphs for word in WORD.findall(paragraph.text)}
        words |= {word for one in world.entities for word in WORD.findall(f"{one.title} {one.description}")}
        assert len(words) <= 1500


def test_a_bag_of_words_tells_namesakes_apart_in_unseen_paragraphs(paragraphs, world):
    shuffled = random.Random(0).sample(paragraphs, len(paragraphs))
    held_out, training = shuffled[: len(shuffled) // 10], shuffled[len(shuffled) // 10 :]
    assert naive_bayes_accuracy(world, training, held_out) >= 0.97


def naive_bayes_accuracy(world, training, held_out):
    """Of held-out ambiguous mentions.

    An entity's word rates are smoothed towards those of all paragraphs, with the weight of its own twenty: a frame
    word that it happened not to meet yet must not outvote a clue.
    """
    prior = 20
    rates, total, counts = Counter(), 0, defaultdict(Counter)
    for paragraph in training:
        words = set(WORD.findall(paragraph.text))
        rates.update(words)
        counts[paragraph.target].update(words)
        total += 1
    seen = Counter(paragraph.target for paragraph in training)

    def likelihood(entity, words):
        return sum(
            math.log((counts[entity][word] + prior * rates[word] / total) / (seen[entity] + prior)) for word in words
        )

    right, asked = 0, 0
    for paragraph in held_out:
        candidates = [paragraph.target, *world.namesakes(paragraph.target)]
        if len(candidates) > 1:
            words = [word for word in set(WORD.findall(paragraph.text)) if word in rates]
            best = max(candidates[::-1], key=lambda entity: likelihood(entity, words))  # a tie is not a success
            right, asked = right + (best == paragraph.target), asked + 1
    return right / asked


def test_sha1_is_in_mediawiki_form():
    assert base36_sha1(b"") == "phoiac9h4m842xq45sp7s6u21eteeq1"
