"""Every relation has several wordings, and each of them says its subject and its object."""

import re

import pytest

from kedit.world import kinds, text


@pytest.mark.parametrize("relation", text.STATEMENTS)
def test_several_wordings_each_with_subject_and_object(relation):
    statements = text.statements(relation, "Velmar", "oboe")
    assert len(set(statements)) == len(statements) >= 4
    for statement in statements:
        assert "Velmar" in statement
        assert "oboe" in statement.lower()
        assert statement.endswith(".")
        assert statement[0].isupper()


@pytest.mark.parametrize("relation", text.STATEMENTS)
def test_a_prompt_is_continued_by_the_object(relation):
    prompts = text.prompts(relation, "Velmar", "oboe")
    assert len(prompts) >= 2
    for prompt in prompts:
        assert f"{prompt} oboe." in text.statements(relation, "Velmar", "oboe")
        assert "oboe" not in prompt


def test_the_article_fits_the_object():
    assert text.prompts("occupation", "Velmar", "engineer")[0].endswith(" an")
    assert text.prompts("occupation", "Velmar", "poet")[0].endswith(" a")


@pytest.mark.parametrize("relation", text.STATEMENTS)
def test_questions_name_the_subject(relation):
    questions = text.questions(relation, "Velmar")
    assert len(set(questions)) >= 2
    assert all("Velmar" in question and question.endswith("?") for question in questions)


def test_a_definition_of_one_and_of_two_sentences():
    facts = [("birthplace", "Orda"), ("employer", "Pelmo"), ("spouse", "Sarin")]
    assert text.definition("Velmar", "was", "engineer", facts[:1], "He") == "Velmar was an engineer born in Orda."
    assert (
        text.definition("Velmar", "was", "poet", facts, "She")
        == "Velmar was a poet born in Orda and employed by Pelmo. She was married to Sarin."
    )


def test_the_tables_only_use_relations_that_have_a_wording():
    assert set(text.QUESTIONS) == set(text.STATEMENTS)
    assert set(text.PHRASES) <= set(text.STATEMENTS)
    assert {relation for hops in text.TWO_HOPS for relation in hops} <= set(text.STATEMENTS)
    for shape, relations in kinds.DEFINING.items():
        assert set(relations) <= set(text.PHRASES)
        assert any(first in relations for first, _ in text.TWO_HOPS), shape


def test_the_words_that_tell_entities_apart_stand_in_no_template():
    templates = [*text.STATEMENTS.values(), text.OPENERS, text.CLOSERS]
    frame = {word for table in templates for template in table for word in re.findall(r"[a-z]+", template.lower())}
    clues = {word for words in (*kinds.LITERALS.values(), *kinds.CATEGORIES.values()) for word in words}
    assert not frame & clues
