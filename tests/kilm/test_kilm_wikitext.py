import bz2
import re
import xml.etree.ElementTree as ET

import mwparserfromhell
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit.kilm.description import describe, first_sentence, sentence_ends, shorten
from kedit.kilm.wikitext import clean, normalise_title, sections, stretches

MARKS = ("[[", "]]", "{{", "}}", "<ref", "'''")


def spans(cleaned):
    return [(cleaned.text[a:b], target) for a, b, target in cleaned.links]


def check(cleaned):
    assert not [mark for mark in MARKS if mark in cleaned.text]
    assert sum(cleaned.fates.values()) == cleaned.total
    assert cleaned.fates["in the text"] == len(cleaned.links)
    end = 0
    for start, stop, target in cleaned.links:
        assert end <= start < stop <= len(cleaned.text)
        assert cleaned.text[start:stop].strip() == cleaned.text[start:stop]
        assert target == normalise_title(target) != ""
        end = stop


@pytest.mark.parametrize(
    ("wikitext", "text", "links"),
    [
        ("[[cat]]s and [[Dog|hounds]]", "cats and hounds", [("cats", "Cat"), ("hounds", "Dog")]),
        ("[[Foo (bar)|]] x", "Foo x", [("Foo", "Foo (bar)")]),
        ("[[new_york#History| New&nbsp;York ]]", "New York", [("New York", "New york")]),
        ("''[[a]]'' '''b [[c|'''d''']]'''", "a b d", [("a", "A"), ("d", "C")]),
        ("[[File:x.jpg|thumb|a [[b]] c]]Text [[:Category:C|c]]", "Text c", []),
        ("x[[Category:C]][[fr:Y]] [[wikt:z|z]]", "x z", []),
        ("[[2001: A Space Odyssey]]", "2001: A Space Odyssey", [("2001: A Space Odyssey", "2001: A Space Odyssey")]),
        ("[[#part|here]] and [[|x]] [[a|b|c]]", "here and x b|c", [("b|c", "A")]),
        ("a<ref name=x>[[R]]</ref> b<ref name=x /> c<!-- [[d]] --> e", "a b c e", []),
        ("{|\n| [[t]]\n|}\nafter", "after", []),
        ("* one [[a]]\n# two\n: three\n; four", "one a\ntwo\nthree\nfour", [("a", "A")]),
        ("a &amp; b &ndash; c&nbsp;d &#91;e&#x5d;", "a & b – c d [e]", []),
        ("[http://x.y label [[z]]] http://x.y [http://x.y]", "label z", [("z", "Z")]),
        ("{{lang|fr|mot [[un]]}} {{nowrap|a b}} {{lang-de|wort}}", "mot un a b wort", [("un", "Un")]),
        ("{{convert|5|km}} {{convert|5|to|6|km}}{{snd}}{{circa|1900}}", "5 km 5 to 6 km – c. 1900", []),
        ("{{frac|1|2}} {{frac|3|1|2}} {{as of|2010}} {{val|3|u=m}}", "1/2 3 1/2 As of 2010 3 m", []),
        ("{{ill|some one|de}} {{formatnum:12}} {{!}} {{abbr|a|b}}", "Some one 12 | a", []),
        ("Joker ({{IPA|x}}) is ({{y}}; born {{z}} 1936), {{w}}.", "Joker is (born 1936).", []),
        ("a<br/>b <sup>2</sup> <math>x_{1}</math>c <nowiki>d</nowiki>", "a b 2 c d", []),
        ("<gallery>\nFile:a.jpg|[[b]]\n</gallery>x __NOTOC__", "x", []),
        ("[[a|b [[c]] d]]", "b c d", [("c", "C")]),
        ("[[&Eacute;mile|e]] [[A%26B|f]] [[x<!-- -->|g]]", "e f g", [("e", "Émile"), ("f", "A&B"), ("g", "X")]),
        ("<div class={{x}}>[[a]]</div>", "a", [("a", "A")]),
        ("{{{arg|[[a]]}}}b", "b", []),
        ("[[{{PAGENAME}}|x]] [[a|{{y}}]]", "x", []),
    ],
)  # fmt: skip
def test_text_and_links(wikitext, text, links):
    cleaned = clean(wikitext)
    assert (cleaned.text, spans(cleaned)) == (text, links)
    check(cleaned)


@pytest.mark.parametrize(
    "wikitext",
    [
        "a [[open {{unclosed| text ''it '''bo [[b]] c",
        "{{Infobox\n| name = x\n| y = [[z]]\nText [[a]].",
        "<ref>never closed [[link]] text",
        "<ref name=x\nnever [[link]]",
        "a]] b}} [[c]] |} {| d ''' e <!-- f [[g]]",
        "[''[ x ]''] {''{ y }''} [[''[[z]]]]",
        "[[a]]<ref", "'" * 7 + "[[a]]" + "'" * 4, "&#91;&#91;x&#93;&#93; &lt;ref&gt;", "<nowiki>[[x]] {{y}}</nowiki>",
    ],
)  # fmt: skip
def test_malformed_markup_leaves_no_marks(wikitext):
    cleaned = clean(wikitext)
    check(cleaned)
    assert cleaned.leftovers


PIECES = ["[[", "]]", "{{", "}}", "''", "'''", "<ref>", "</ref>", "|", "a", "b c", " ", "\n", "==", "== x ==", "<!--"]
PIECES += ["-->", "{|", "|}", "\n|-\n", "\n* ", "File:", "()", ",", "&amp;", "&#91;", "<br/>", "\u200b", "\u2003", "é"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_soup_of_marks_gives_clean_text_and_accounts_for_every_link(wikitext):
    for setting in ("lead", "full"):
        check(clean(wikitext, setting))


def test_sections_are_dropped_with_what_lies_below_them():
    wikitext = (
        "Lead [[a]].\n== History ==\nOld [[b]].\n=== Notes ===\n[[c]]\n==== Below ====\n[[d]]\n"
        "=== More ===\nNew [[e]].\n"
        "== '''See also''' ==\n* [[f]]\n=== Below ===\n* [[g]]\n== End ==\nDone."
    )
    cleaned = clean(wikitext)
    assert cleaned.text == "Lead a.\nOld b.\nNew e.\nDone."
    assert cleaned.fates == {"in the text": 3, "in a dropped section": 4}
    lead = clean(wikitext, "lead")
    assert lead.text == "Lead a."
    assert lead.fates == {"in the text": 1, "outside the lead": 6}


def test_headings_in_comments_and_templates_do_not_end_the_lead():
    wikitext = (
        "{{box|x=\n== no ==\n}}a<!--\n== no ==\n-->b {{x|<nowiki>\n== no ==\n</nowiki>}}c\n== yes == <!-- d -->\nrest"
    )
    assert [heading for heading, *_ in sections(wikitext)] == ["", "yes"]
    assert clean(wikitext, "lead").text == "ab c"
    assert [heading for heading, *_ in sections("{{never closed\na\n== yes ==\nb")] == ["", "yes"]
    assert [(h, level) for h, level, *_ in sections("==a==\n===b===\n==\n=c=")] == [("", 0), ("a", 2), ("b", 3)]


@pytest.mark.parametrize(
    ("wikitext", "description"),
    [
        ("{{short description|Greek goddess}}", "Greek goddess"),
        ("{{Short Description|1=Greek ''goddess'' of [[wisdom]]|noreplace}}", "Greek goddess of wisdom"),
        ("{{SHORTDESC:Greek goddess}}", "Greek goddess"),
        ("{{SHORTDESC:Greek: goddess|noreplace}}", "Greek: goddess"),
        ("{{shortdesc|Greek goddess|2=noreplace}}", "Greek goddess"),
        ("{{short_description\n| Greek   goddess <ref>x</ref>}}", "Greek goddess"),
        ("{{Short description|first}} {{short description|second|2=noreplace}}", "first"),
        ("{{Short description|first}} {{short description|second}}", "second"),
        ("{{short description|none}}", "none"),
        ("{{short description|}}", ""),
        ("{{short description}} {{short descriptions of things|x}}", None),
        ("nothing", None),
    ],
)
def test_short_description(wikitext, description):
    cleaned = clean(wikitext + "\nText.", "lead")
    assert cleaned.short_description == description
    assert "Greek" not in cleaned.text


def test_description_falls_back():
    text = "Short\nIslamabad (b. 1960) is the capital. It is green."
    assert describe("Town", text) == ("Town", "template")
    assert describe("None", text) == ("", "none")
    assert describe("Wikimedia list article", text) == ("", "generic")
    assert describe("", text) == describe(None, text) == ("Islamabad (b. 1960) is the capital.", "sentence")
    assert describe(None, "") == ("", "missing")
    assert describe("word " * 100, "")[0] == ("word " * 50).strip()
    assert shorten("x" * 300) == "x" * 250


@pytest.mark.parametrize(
    "sentences",
    [
        [
            "J. R. R. Tolkien (b. 3 Jan. 1892; d. 1973. Really.) wrote it.",
            "Mr. Smith read it in the U.S. Army!",
            "Why?",
        ],
        ["It cost 3.5 million, i.e. a lot.", '"So be it."', "The end"],
        ["It ended.", "See no. 7 of St. Mary vs. Co. Ltd. papers.", "And I.", "Yes…"],
        ["東京は首都。", "Then all."],
    ],
)
def test_sentences(sentences):
    text = " ".join(sentences).replace("。 ", "。")
    ends = sentence_ends(text)
    assert [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)] == sentences
    assert first_sentence("x " * 20 + ".\n" + text).startswith("x x")


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("foo_bar", "Foo bar"),
        (" :foo  bar#x ", "Foo bar"),
        ("AT&amp;T", "AT&T"),
        ("ßx", "ßx"),
        ("éa", "Éa"),
        ("100%", "100%"),
        ("iPod", "IPod"),
        ("#x", ""),
    ],
)
def test_normalise_title(raw, title):
    assert normalise_title(raw) == title


@pytest.fixture(scope="module")
def extract(real_data):
    root = ET.fromstring(bz2.decompress((real_data / "wikipedia/enwiki-shortened-2016.xml.bz2").read_bytes()))
    space = re.match(r"\{.*\}", root.tag).group()
    return {
        page.find(f"{space}title").text: page.find(f"{space}revision/{space}text").text
        for page in root.iter(f"{space}page")
        if page.find(f"{space}redirect") is None
    }


@pytest.mark.parametrize("setting", ["lead", "full"])
def test_real_articles_are_clean_and_every_link_is_accounted_for(extract, setting):
    assert len(extract) == 106
    texts = []
    for wikitext in extract.values():
        cleaned = clean(wikitext, setting)
        check(cleaned)
        texts.append(cleaned.text)
    assert texts.count("") == (setting == "lead")  # one article begins with a heading


@pytest.mark.parametrize(("setting", "step"), [("lead", 1), ("full", 8)])
def test_real_links_are_those_that_mwparserfromhell_counts(extract, setting, step):
    """Where text is read; what is left out is counted by its brackets."""
    for title, wikitext in list(extract.items())[::step]:
        cleaned = clean(wikitext, setting)
        links = [
            link
            for start, end, reason in stretches(wikitext, setting)
            if not reason
            for link in mwparserfromhell.parse(wikitext[start:end]).filter_wikilinks()
        ]
        left_out = cleaned.fates["outside the lead"] + cleaned.fates["in a dropped section"]
        assert cleaned.total - left_out == len(links), title
        assert {target for _, _, target in cleaned.links} <= {normalise_title(str(link.title)) for link in links}


def test_real_short_descriptions(real_data):
    found = {}
    for path in sorted((real_data / "wikipedia/wikitext_shortdesc").glob("*.txt")):
        wikitext = path.read_text(encoding="utf-8")
        said = re.match(r"\{\{short description\|([^}]*)\}\}", wikitext, re.IGNORECASE)
        cleaned = clean(wikitext)
        check(cleaned)
        found[path.stem] = describe(cleaned.short_description, cleaned.text)
        if said:
            assert found[path.stem] == (said.group(1), "template")
    assert len(found) == 7
    assert found["islamabad-full"][1] == "sentence"
