"""Teacher and student share the very same ids, and what is scored is the text behind the mention, for every tokenizer.

Byte-level tokenizers are judged without character offsets: by the bytes that their tokens stand for.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from kedit.distill.loss import KINDS
from kedit.distill.rows import (
    NO_MENTION,
    NO_TOKEN,
    NOTHING_AFTER,
    TOO_LONG,
    Kind,
    Sentence,
    Template,
    make_rows,
)
from kedit.editing.probes import Fact
from kedit.editing.sources import DataError
from kedit.lm.backbones import load_tokenizer
from kedit.lm.text import encode

REAL = ["gpt2", "roberta", "llama2", "albert", "bert_uncased", "sentencepiece_test_1000"]
LOSSLESS = ["made", "gpt2", "roberta", "llama2"]
DEFINITION = "Maro Tellin (born 1851) is a painter's painter, naïve 東京 fame included."


@pytest.fixture(scope="module", params=["made", *REAL])
def tokenizer(request, tokenizer_folders):
    if request.param == "made":
        folder = tokenizer_folders["bart"]
    else:
        folder = request.getfixturevalue("real_data") / "tokenizers" / request.param
    loaded = load_tokenizer(folder)
    loaded.family = request.param
    return loaded


@pytest.fixture(scope="module")
def made(tokenizer_folders):
    return load_tokenizer(tokenizer_folders["bart"])


NAMES = ["Maro Tellin", "O'Neil", "Ťeśt naïve\u0301", "東京", "🦊 Fox", "Tellin", "rock 'n' roll", "X"]
BEFORE = ["", "In 1893 ", "The Maro Tellin Company knew ", "“", "(", "It's l'été; ", "東", "Cafe\u0301 ", "x\n"]
AFTER = ["", "'s bridge stood.", " painted Tellin's bridge, as Maro Tellin.", ", a heron", "東京で", "\u0301 mark", "s",
         " 🦊🦊 e\u0301 <s> <extra_id_0> </s>", ".", " ", "\nNew line"]  # fmt: skip
PARTS = st.tuples(st.sampled_from(BEFORE), st.sampled_from(NAMES), st.sampled_from(AFTER))
ANY = st.tuples(st.text(max_size=8), st.text(min_size=1, max_size=6), st.text(max_size=8)).filter(
    lambda parts: parts[1].strip() and not parts[1][-1].isspace()
)
PROPERTY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def piece_bytes(tokenizer, ids) -> list[bytes]:
    """The bytes that each token of a lossless tokenizer stands for."""
    pieces = tokenizer.convert_ids_to_tokens([int(one) for one in ids])
    if tokenizer.family == "llama2":
        return [
            bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
            for piece in pieces
        ]
    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return [bytes(back[letter] for letter in piece) for piece in pieces]


@pytest.mark.parametrize("separator", [" ", "\n", "\n\nText: "])
@PROPERTY
@given(parts=PARTS | ANY)
@example(parts=("", "Maro Tellin", "'s"))
@example(parts=("The Grey Bridge is by ", "Maro Tellin", ""))
def test_ids_are_shared_and_the_text_after_the_mention_is_scored(tokenizer, separator, parts):
    before, name, after = parts
    text = before + name + after
    end = len(before) + len(name)
    template = Template(separator)
    made = make_rows(tokenizer, [Sentence(0, DEFINITION, text, (len(before), end))], template)
    tokens, offsets = encode(tokenizer, [text], leading_space=template.leading_space)[0]
    if not made.rows:
        assert made.skipped == {NOTHING_AFTER: 1}
        # nothing but space is left, or one token alone holds everything behind the mention and a part of it
        assert not after.strip() or not len(tokens) or offsets[-1, 0] < end or len(tokens) == 1
        return
    (row,), (prefix,) = made.rows, made.prefixes
    assert not made.skipped
    assert row.ids.dtype == row.scored.dtype == np.int32

    # the same continuation, once, at the end of both
    np.testing.assert_array_equal(row.ids, tokens)
    np.testing.assert_array_equal(made.teacher_ids(row), [*prefix, *tokens])
    np.testing.assert_array_equal(made.student_ids(row), [*made.start, *tokens])
    bos = tokenizer.bos_token_id
    assert made.start.tolist() == ([] if bos is None else [bos])
    if bos is not None:
        assert made.teacher_ids(row).tolist().count(bos) == 1  # not doubled, and not read from "<s>" in a text

    # predicted are all tokens from some token on, and they are just those that begin behind the mention
    predicted = row.scored + 1
    np.testing.assert_array_equal(predicted, np.arange(predicted[0], len(tokens)))
    assert (offsets[predicted, 0] >= end).all()
    assert predicted[0] == 1 or offsets[predicted[0] - 1, 0] < end

    if tokenizer.family in LOSSLESS:
        pieces = piece_bytes(tokenizer, tokens)
        everything = text.encode()
        added = len(b"".join(pieces)) - len(everything)  # the space in front
        assert b"".join(pieces) == b" " * added + everything
        starts = np.cumsum([0, *map(len, pieces)])[:-1] - added
        wanted = [token for token in range(1, len(tokens)) if starts[token] >= len(text[:end].encode())]
        assert predicted.tolist() == wanted
        straddles = starts[predicted[0]] - len(text[:end].encode())
        assert b"".join(pieces[predicted[0] :]) == after.encode()[straddles:]


@pytest.mark.parametrize("name", ["Maro Tellin", "O'Neil", "Velmar"])
@pytest.mark.parametrize("before", ["", "In the north the "])
@pytest.mark.parametrize("after", [" was born there.", "'s old bridge", ", a painter, knew the Velmar bridge."])
def test_scored_tokens_spell_the_text_after_the_mention(tokenizer, name, before, after):
    """Also of tokenizers that normalise."""
    span = (len(before), len(before) + len(name))
    (row,) = make_rows(tokenizer, [Sentence(0, DEFINITION, before + name + after, span)]).rows
    if tokenizer.unk_token_id in row.ids or tokenizer.family.startswith("sentencepiece"):
        # its vocabulary is tiny, and unknown pieces lose their letters: counted from the end instead
        pieces = tokenizer.convert_ids_to_tokens(row.ids[row.scored + 1].tolist())
        assert pieces[-1].strip("▁")[-1] == after[-1]
        assert offsets_of(tokenizer, before + name + after)[row.scored[0] + 1][0] >= span[1]
        return
    spelled = tokenizer.decode(row.ids[row.scored + 1], clean_up_tokenization_spaces=False)
    assert "".join(spelled.split()).lower() == "".join(after.split()).lower()


def offsets_of(tokenizer, text):
    return encode(tokenizer, [text], leading_space=True)[0].offsets


def test_the_teacher_reads_what_the_whole_text_reads(tokenizer):
    """Definition, space and sentence as one text give the same ids: nothing is doubled and no space is lost."""
    sentences = ["Maro Tellin's bridge stood.", "'Tis l'été in Velmar, 1893!", "東京 knows e\u0301 🦊."]
    made = make_rows(tokenizer, [Sentence(0, DEFINITION, text) for text in sentences], positions="all")
    for row, text in zip(made.rows, sentences, strict=True):
        whole = encode(tokenizer, [f"{DEFINITION} {text}"])[0].ids
        np.testing.assert_array_equal(made.teacher_ids(row), [*made.start, *whole])


def test_repeated_mention_and_short_form_in_a_longer_name(tokenizer):
    text = "The Tellin company paid Tellin, and Tellin left."
    for start in (4, 24, 36):
        (row,) = make_rows(tokenizer, [Sentence(0, DEFINITION, text, (start, start + 6))]).rows
        first = offsets_of(tokenizer, text)[row.scored[0] + 1][0]
        assert text[start + 6 : first].strip() == ""  # no token of the rest is left out


def test_all_positions_and_the_papers(made):
    text = "Tellin is a heron"
    tokens = len(encode(made, [text], leading_space=True)[0].ids)
    sentence = Sentence(0, DEFINITION, text, (0, 6))
    (row,) = make_rows(made, [sentence], positions="all").rows
    assert row.scored.tolist() == list(range(tokens - 1))
    (row,) = make_rows(made, [sentence], positions="all", reference=True).rows
    assert row.scored.tolist() == list(range(tokens))


def test_text_to_keep_is_scored_whole_and_read_without_a_definition(made):
    given = [
        (-1, "", "Velmar is a harbour town.", None, Kind.TEXT),
        (1, "", "In Velmar is a heron.", (3, 9), Kind.SWAPPED),
        (0, DEFINITION, "Tellin is a heron.", (0, 6), 0),
        (0, "  ", "Tellin was born there.", None, Kind.TEXT),
        (0, DEFINITION, "Tellin is tall.", (0, 6), 0),
    ]
    rows = make_rows(made, given)
    assert [row.prefix for row in rows.rows] == [0, 0, 1, 0, 1]
    assert [row.fact for row in rows.rows] == [-1, 1, 0, 0, 0]
    assert [row.kind for row in rows.rows] == [Kind.TEXT, Kind.SWAPPED, 0, Kind.TEXT, 0]
    assert [row.sentence for row in rows.rows] == [0, 1, 2, 3, 4]
    assert rows.prefixes[0].tolist() == [made.bos_token_id]
    assert rows.rows[0].scored[0] == 0
    assert rows.rows[1].scored[0] > 0
    for number in (0, 1, 3):
        row = rows.rows[number]
        np.testing.assert_array_equal(rows.teacher_ids(row), rows.student_ids(row))


def test_without_bos_an_empty_definition_is_no_token_at_all(tokenizer_folders):
    tokenizer = load_tokenizer(tokenizer_folders["bart"])
    tokenizer.bos_token = None
    rows = make_rows(tokenizer, [Sentence(0, "", "Tellin is a heron.", (0, 6))])
    assert len(rows.start) == len(rows.prefixes[0]) == 0
    np.testing.assert_array_equal(rows.teacher_ids(rows.rows[0]), rows.rows[0].ids)


def test_what_is_skipped_is_counted_with_its_reason(made):
    given = [
        Sentence(0, DEFINITION, "Velmar is a harbour town."),
        Sentence(0, DEFINITION, "It was painted by Tellin", (18, 24)),
        Sentence(0, DEFINITION, "It was painted by Tellin \n", (18, 24)),
        Sentence(0, DEFINITION, "Tellin " + "built a bridge and " * 40, (0, 6)),
        Sentence(-1, "", "", None, Kind.TEXT),
        Sentence(0, DEFINITION, "Tellin is a heron.", (0, 6)),
    ]
    rows = make_rows(made, given, limit=150)
    assert rows.skipped == {NO_MENTION: 1, NOTHING_AFTER: 2, TOO_LONG: 1, NO_TOKEN: 1}
    assert [row.sentence for row in rows.rows] == [5]
    longest = len(rows.teacher_ids(rows.rows[0]))
    assert len(make_rows(made, given[5:], limit=longest).rows) == 1
    assert make_rows(made, given[5:], limit=longest - 1).skipped == {TOO_LONG: 1}


def test_a_definition_longer_than_the_context_is_an_error_with_its_place(made):
    facts = [
        Fact("q1", "Velmar", "A town.", where="facts.jsonl:1"),
        Fact("q2", "Tellin", DEFINITION * 9, where="facts.jsonl:2"),
        Fact("q3", "Maro", DEFINITION * 9),
    ]
    sentence = Sentence(1, facts[1].definition, "Tellin is a heron.", (0, 6))
    with pytest.raises(
        DataError, match=r"^facts.jsonl:2: 'Tellin': the definition has \d+ tokens and the model reads 64"
    ):
        make_rows(made, [sentence], limit=64, facts=facts)
    with pytest.raises(DataError, match=r"^fact 'q3' \('Maro'\): .* shorten the definition or take a model"):
        make_rows(made, [sentence._replace(fact=2)], limit=64, facts=facts)
    with pytest.raises(DataError, match=r"^fact number 1: "):
        make_rows(made, [sentence], limit=64)
    with pytest.raises(DataError, match=r"^no fact: "):
        make_rows(made, [sentence._replace(fact=-1)], limit=64)


@pytest.mark.parametrize("mention", [(-1, 3), (3, 3), (0, 99)])
def test_a_mention_outside_of_its_text_is_refused(made, mention):
    with pytest.raises(ValueError, match="lies outside of 'Tellin is tall'"):
        make_rows(made, [Sentence(0, DEFINITION, "Tellin is tall", mention)])


def test_kinds_are_those_of_the_loss():
    assert [kind.name.lower() for kind in Kind] == list(KINDS)


def test_no_sentences_give_no_rows(made):
    rows = make_rows(made, [])
    assert (rows.rows, rows.prefixes, rows.skipped) == ([], [], {})
