"""droptune/errors.py: one tree, drawn truly in its docstring, and messages that name neighbours."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from droptune import errors
from droptune.errors import DroptuneError, nearest

ERRORS = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if value.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_a_droptune_error_and_says_when_it_is_raised(error):
    assert issubclass(error, DroptuneError)
    assert error.__doc__ and error.__doc__.endswith(".")


def test_no_error_is_caught_as_one_of_pythons_own():
    for error in ERRORS:
        assert not issubclass(error, ValueError | OSError | RuntimeError | LookupError)


def test_the_docstring_draws_the_whole_tree():
    drawn, parents = {}, {0: "Exception"}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ( *)(?:\+ )?(\w+Error)\b", line):
            depth = len(match[1]) // 4 + line.count("+ ")
            parents[depth + 1] = match[2]
            drawn[match[2]] = parents[depth]
    assert drawn == {error.__name__: error.__base__.__name__ for error in ERRORS}


def test_nearest_names_what_is_spelled_alike_first():
    assert nearest("standart", ["alpha", "standard", "channel"]) == "; nearest: standard"


def test_nearest_lists_what_is_known_when_nothing_is_alike():
    assert nearest("zzz", ["beta", "alpha"]) == "; known: alpha, beta"


def test_nearest_lists_at_most_ten_names():
    assert nearest("zzz", [f"name {i}" for i in range(30)]).count(",") == 9


def test_nearest_says_nothing_when_nothing_is_known():
    assert nearest("zzz", []) == ""


@given(known=st.lists(st.text("abcdef.", min_size=1, max_size=6), min_size=1, unique=True))
def test_a_known_name_is_the_first_of_its_nearest(known):
    assert nearest(known[0], iter(known)).removeprefix("; nearest: ").split(", ")[0] == known[0]
