"""Facts, sentences of transfer sets, mentions and filters."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit.distill.mentions import count_words, end_of_line, find_mention, sentence_ends
from kedit.distill.transfer import (
    Filters,
    Provenance,
    TransferSentence,
    count,
    read_transfer_set,
    summary,
    write_transfer_set,
)
from kedit.editing.facts import read_facts
from kedit.editing.probes import Fact
from kedit.editing.sources import DataError

MARO = Fact("1", "Maro Tellin", "Maro Tellin is a painter from Velmar.", ("Maro", "Tellin"))


def lines(path, *records):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("The bridge of Maro Tellin stands.", MARO.names, "Maro Tellin"),
        ("Maro's bridge stands.", MARO.names, "Maro"),
        ("Maro’s bridge stands.", MARO.names, "Maro"),
        ("The Maroon bridge by Tellinson.", MARO.names, None),
        ("O'Maro is another one.", MARO.names, None),
        ("O'Maro is another one than Maro.", MARO.names, "Maro"),
        ("la ville d'Arvelle est belle", ["Arvelle"], "Arvelle"),
        ("We love Hawai'i.", ["Hawai"], None),
        ("We love Hawai’i.", ["Hawai'i"], "Hawai’i"),
        ("It rose by 3.5 percent.", ["5"], None),
        ("He has an iPhone 14 now.", ["iPhone 1", "iPhone"], "iPhone"),
        ("Windows 3.1 came later.", ["Windows 3"], None),
        ("the Great is a series", ["The Great"], "the Great"),
        ("Great it is", ["The Great"], None),
        ("It tells of Catherine the Great and her court.", ["The Great"], None),
        ("It tells of Émile  the Great and of The Great.", ["The Great"], "The Great"),
        ("Elle a allumé the Great.", ["The Great"], "the Great"),
        ("In the Great she plays a queen.", ["The Great"], "the Great"),
        ("EBay sells it.", ["eBay"], "EBay"),
        ("maro is no name", ["Maro"], None),
        ("Maro\n Tellin painted.", ["Maro Tellin"], "Maro\n Tellin"),
        ("the anti-Maro party", ["Maro"], "Maro"),
        ("Gabriel‑Tell won.", ["Gabriel-Tell"], "Gabriel‑Tell"),
        ("昨日東京都は雨だった", ["東京"], "東京"),
        ("Das Haus in Zürich brennt.", [unicodedata.normalize("NFD", "Zürich")], "Zürich"),
        (unicodedata.normalize("NFD", "Maré is far"), ["Mare"], None),
        ("Александрия горит", ["Александр"], None),
        ("x_Maro", ["Maro"], None),
        ("Maro", ["Maro"], "Maro"),
        ("", ["Maro"], None),
    ],
)
def test_a_mention_is_a_name_that_stands_alone(text, names, found):
    span = find_mention(text, names)
    assert (None if span is None else text[slice(*span)]) == found


WORDS = st.text(st.sampled_from("abzéßЖλ東-'’.3"), min_size=1, max_size=5)
SEPARATORS = st.sampled_from([" ", ", ", " (", "\n"])


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), st.lists(WORDS, max_size=4), SEPARATORS, SEPARATORS)
def test_a_name_between_spaces_is_found_and_its_offsets_hold_it(name, others, before, behind):
    left = " ".join(others)
    text = f"{left}{before}{name}{behind}end"
    span = find_mention(text, [name])
    assert span is not None
    assert span[0] <= len(left + before)
    assert find_mention(f"q{name}q", [name]) is None or not (name[0].isalnum() and name[-1].isalnum()) or "東" in name
    found = text[slice(*span)].replace("’", "'")
    assert " ".join(found.split()).casefold() == name.replace("’", "'").casefold()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["Maro", "Tellin", "Maro Tellin"]), st.sampled_from(["", "x", "'s", "y", "'", ".", "é", "東"]),
       st.sampled_from(["", "x", "O'", "'", "(", "é", " "]))  # fmt: skip
def test_the_longest_name_wins_where_several_begin(name, behind, before):
    span = find_mention(f"{before}{name}{behind}", MARO.names)
    glued = behind in ("x", "y", "é") or before in ("x", "O'", "é")
    if not glued:
        assert span == (len(before), len(before) + len(name))
    elif name != "Maro Tellin":
        assert span is None


def test_sentences_end_at_their_ends():
    text = "Dr. J. R. Maro lives at No. 5 in the U.S. today. He paid 3.5 crowns! “Why?” he asked.\nNo end here"
    ends = sentence_ends(text)
    cuts = [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
    assert cuts[:2] == ["Dr. J. R. Maro lives at No. 5 in the U.S. today.", "He paid 3.5 crowns!"]
    assert cuts[-1] == "No end here"
    assert "".join(cuts).replace(" ", "") == "".join(text.split())
    assert sentence_ends("") == [] == sentence_ends("  ")
    assert sentence_ends("東京は雨。「はい。」と彼は言う") == [5, 10, 15]


def test_a_line_ends_where_nothing_can_be_added_to_it():
    assert end_of_line("It stands. Then", 1) == 10
    assert end_of_line("It stands.", 1) is None  # 10.5 may follow
    assert end_of_line("\n\n It stands. Yes\nNo", 2) == 17
    assert end_of_line("It stands. Yes") is None
    assert end_of_line(" It stands. Yes\nNo") == 15
    assert end_of_line("\n") is None


def test_words_are_counted_in_any_script():
    assert count_words("'s old bridge, it doesn't fall") == 5
    assert count_words("東京は雨 in May") == 6
    assert count_words(" .") == 0


def test_facts_are_read(tmp_path):
    path = lines(tmp_path / "f.jsonl", {"id": "a", "name": "Maro", "definition": "A man.", "label": 3},
                 "", {"id": "b", "name": "Velmar", "definition": "A town.", "aliases": ["the town"]})  # fmt: skip
    first, second = read_facts(path)
    assert first == Fact("a", "Maro", "A man.", (), f"{path}:1")
    assert (second.aliases, second.where) == (("the town",), f"{path}:3")


GOOD = {"id": "a", "name": "Maro", "definition": "A man."}


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"id": "b", "name": "Bo"}, "no 'definition'"),
        ({"id": 3, "name": "Bo", "definition": "A man."}, "'id' is int"),
        ({"id": " ", "name": "Bo", "definition": "A man."}, "id of 'Bo' is empty"),
        ({"id": "b", "name": "", "definition": "A man."}, "name is empty"),
        ({"id": "b", "name": "Bo", "definition": " "}, "definition of 'Bo' is empty"),
        ({"id": "a", "name": "Bo", "definition": "A man."}, "id 'a' came before at"),
        ({"id": "b", "name": "Maro", "definition": "A man."}, "name 'Maro' came before at"),
        ({"id": "b", "name": "Bo", "definition": "A man.", "alias": ["B"]}, "did you mean 'aliases'"),
        ({"id": "b", "name": "Bo", "definition": "A man.", "aliases": "B"}, "'aliases' is str"),
        ({"id": "b", "name": "Bo", "definition": "A man.", "aliases": ["B", 2]}, "only strings"),
        ({"id": "b", "name": "Bo", "definition": "A man.", "aliases": [""]}, "alias is empty"),
        ("}{", "not JSON"),
        ([1], "wanted a JSON object"),
    ],
)
def test_bad_facts_are_told_with_file_and_line(tmp_path, second, told):
    path = lines(tmp_path / "f.jsonl", GOOD, second)
    with pytest.raises(DataError, match=r"f\.jsonl:2") as error:
        read_facts(path)
    assert told in str(error.value)


def test_files_without_anything_are_told(tmp_path):
    empty = lines(tmp_path / "e.jsonl")
    for read, word in ((read_facts, "no facts"), (read_transfer_set, "no sentences")):
        with pytest.raises(DataError, match=word):
            read(empty)
        with pytest.raises(DataError, match="no file"):
            read(tmp_path / "none.jsonl")


def test_what_is_written_is_read_again(tmp_path):
    other = Fact("2", "Vélmar", "Vélmar is a town.\nIt’s old.")
    origin = Provenance("ModelGenerator", "gpt2", "abc", "prompt", 0.9, 0.95, 40, 7)
    sentences = [
        TransferSentence(MARO, "Tellin painted it.", (0, 6), "", origin),
        TransferSentence(other, "It's old.", None, "Vélmar is a town.", Provenance("SplitDocument")),
    ]
    write_transfer_set(tmp_path / "sentences.jsonl", sentences)
    read = read_transfer_set(tmp_path)
    assert [(s.text, s.mention, s.context, s.provenance) for s in read] == [
        (s.text, s.mention, s.context, s.provenance) for s in sentences
    ]
    assert [s.fact.definition for s in read] == [MARO.definition, other.definition]
    assert read[0].fact.aliases == MARO.aliases
    assert read_transfer_set(tmp_path, [MARO, other]) == sentences


def test_a_file_of_ones_own_needs_fact_and_text_only(tmp_path):
    path = lines(tmp_path / "s.jsonl", {"fact": "1", "text": "See Maro there."}, {"name": "Maro Tellin", "text": "No."},
                 {"name": "Bo", "definition": "Bo is a dog.", "text": "I saw Bo run.", "mention": [0, 1]},
                 {"name": "Bo", "text": "Bo ran."})  # fmt: skip
    read = read_transfer_set(path, [MARO])
    assert [s.mention for s in read] == [(4, 8), None, (0, 1), (0, 2)]
    assert [s.fact.id for s in read] == ["1", "1", "Bo", "Bo"]
    assert read[0].provenance == Provenance("file")


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"fact": "9", "text": "x"}, "no fact '9' among the 1"),
        ({"text": "x"}, "says of no fact"),
        ({"fact": 1, "text": "x"}, "'fact' is int"),
        ({"fact": "1", "text": " "}, "text is empty"),
        ({"fact": "1"}, "no 'text'"),
        ({"fact": "1", "text": "abc", "mention": [0, 4]}, "outside the text of 3"),
        ({"fact": "1", "text": "abc", "mention": [1, 1]}, "outside"),
        ({"fact": "1", "text": "abc", "mention": [0, 1.5]}, "wanted [start, end] or null"),
        ({"fact": "1", "text": "abc", "mention": 3}, "wanted [start, end] or null"),
        ({"fact": "1", "text": "abc", "context": 3}, "'context' is int"),
        ({"fact": "1", "text": "abc", "mentions": [0, 1]}, "did you mean 'mention'"),
        ({"fact": "1", "text": "abc", "definition": "Another."}, "the definition of '1'"),
        ({"fact": "1", "text": "abc", "name": "Maro"}, "the name of '1'"),
        ({"fact": "7", "text": "abc", "name": "Maro Tellin", "definition": "A."}, "fact '7' here and '1'"),
        ({"fact": "7", "text": "abc", "name": "Bo", "definition": ""}, "definition of 'Bo' is empty"),
    ],
)
def test_bad_sentences_are_told_with_file_and_line(tmp_path, second, told):
    path = lines(tmp_path / "s.jsonl", {"fact": "1", "text": "Maro."}, second)
    with pytest.raises(DataError, match=r"s\.jsonl:2") as error:
        read_transfer_set(path, [MARO])
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("Maro painted the old bridge.", (0, 4)),
        ("", "empty"),
        ("A man painted the bridge.", "no mention"),
        ("The bridge is by Maro Tellin.", "too little after the mention"),
        ("The bridge is Maro's best.", "too little after the mention"),
        ("Maro is.", "too little after the mention"),
        ("Maro is it", "unfinished"),
        ("So Maro " + "x " * 30, "too long"),
        ("Tellin was made of stone.", "forbidden"),
        ("maro?  Maro PAINTED the old bridge.", "duplicate"),
    ],
)
def test_each_sentence_is_kept_or_has_its_reason(text, result):
    filters = Filters(max_words=20, whole_sentences=True, forbidden=["{name} was made of", "[xyz]{9}"])
    kept = filters.judge(TransferSentence(MARO, text), {"\nmaro? maro painted the old bridge."})
    assert (kept if isinstance(kept, str) else kept.mention) == result


def test_filters_without_need_of_a_mention_and_settings_that_leave_nothing():
    free = Filters(require_mention=False, min_words=4)
    assert free.judge(TransferSentence(MARO, "It stands in Velmar."), set()).mention is None
    assert free.judge(TransferSentence(MARO, "It stands."), set()) == "too short"
    given = free.judge(TransferSentence(MARO, "The man painted the bridge.", (0, 7)), set())
    assert given.mention == (0, 7)  # a mention that a file gives is kept
    with pytest.raises(DataError, match="no regular expression"):
        Filters(forbidden=["("])
    with pytest.raises(DataError, match="leave nothing"):
        Filters(min_words=9, max_words=3)


def test_the_summary_names_facts_without_sentence():
    facts = [Fact(str(n), f"N{n}", "d") for n in range(13)]
    counts = count(facts, [TransferSentence(facts[0], "N0 is.", (0, 2))], {"empty": 2})
    assert counts["sentences_per_fact"] == {"0": 12, "1": 1}
    assert (counts["drafts"], counts["dropped"]) == (3, {"empty": 2})
    assert summary(counts).endswith("no sentence for 12 facts: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more")
