"""Problems: the first is raised, or all are kept."""

import pickle

import pytest

from kedit.editing.problems import BadInput, Problem, collected, each, refuse, refuse_empty, refuse_together
from kedit.editing.sources import DataError

RECORDS = [("a:1", 1), ("a:2", -2), ("a:3", 3), ("a:4", -4)]


def positive(value: int, where: str) -> int:
    if value < 0:
        raise BadInput(where, f"{value} is negative", "make it positive", "value")
    return value


def test_outside_the_first_is_raised():
    with pytest.raises(DataError, match="a:2: -2 is negative: make it positive"):
        list(each(RECORDS, positive))
    with pytest.raises(DataError, match=r"^nothing: read on$"):
        refuse_empty(BadInput("", "nothing", "read on"))


def test_inside_what_is_refused_is_left_out_and_kept():
    with collected() as problems:
        assert list(each(RECORDS, positive)) == [1, 3]
        refuse_empty(DataError("nothing was read"))  # which was told record by record
    assert problems.count == 2
    assert problems.kept[0] == Problem("a:2", "-2 is negative", "make it positive", "value")
    with pytest.raises(DataError):  # outside again
        list(each(RECORDS, positive))


def test_what_cannot_be_gone_on_after_is_kept_too():
    with collected() as problems:
        refuse(DataError("one"))
        raise DataError("two")
    assert [problem.what for problem in problems.kept] == ["one", "two"]


def test_all_problems_of_a_record_are_told_and_only_so_many_kept():
    many = [BadInput("a:1", f"wrong {number}") for number in range(5)]
    with pytest.raises(DataError, match=r"^a:1: wrong 0$"):
        refuse_together(many)
    with collected(3) as problems:
        refuse_together(many)
    assert (problems.count, [problem.what for problem in problems.kept]) == (5, ["wrong 0", "wrong 1", "wrong 2"])
    refuse_together([])


def test_errors_of_other_kinds_are_not_kept():
    with pytest.raises(KeyError), collected():
        raise KeyError("a bug")


def test_one_inside_another_keeps_its_own():
    with collected() as outer:
        with collected() as inner:
            refuse(DataError("in"))
        refuse(DataError("out"))
    assert ([one.what for one in inner.kept], [one.what for one in outer.kept]) == (["in"], ["out"])


def test_a_problem_comes_whole_from_another_process():
    error = BadInput("a:1", "what", "remedy", "field", [BadInput("a:1", "more")])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field, str(again.more[0])) == (str(error), "field", "a:1: more")
