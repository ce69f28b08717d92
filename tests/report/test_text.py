"""Numbers, times, plans and names as text."""

import json
import math

import pytest

from droptune.report.text import (
    difference_line,
    json_text,
    number,
    one_line,
    plan_line,
    seconds,
    short,
    visible,
)


def test_what_can_be_printed_stays():
    assert visible("Größe 5 µm, 名") == "Größe 5 µm, 名"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb", r"a\nb"),
        ("\u202eabc", r"\u202eabc"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_cannot_be_printed_is_its_escape(text, escaped):
    assert visible(text) == escaped


def test_one_line_joins_lines_and_has_an_end():
    assert one_line("a\n\n  b\tc") == "a b c"
    assert len(one_line("x" * 10_000)) == 500


@pytest.mark.parametrize(
    ("value", "measured", "was_set"),
    [
        (0.1, "0.1000", "0.1"),
        (1.87, "1.870", "1.87"),
        (1234.0, "1234", "1234"),
        (3, "3", "3"),
        (None, "-", "-"),
        (math.nan, "-", "-"),
        (math.inf, "-", "-"),
        ("on", "on", "on"),
    ],
)
def test_numbers(value, measured, was_set):
    assert (number(value), short(value)) == (measured, was_set)


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (75, "1 min 15 s"), (None, "-")]
)
def test_seconds(value, text):
    assert seconds(value) == text


def test_plans_that_have_no_site_or_are_none():
    assert plan_line(None) == "-"
    assert plan_line({"version": 1, "sites": {}}) == "no dropout"


def test_a_long_plan_with_one_rate_and_two_kinds():
    kinds = ["standard", "channel", "standard", "channel"]
    sites = {str(n): {"kind": kind, "rate": 0.1} for n, kind in enumerate(kinds)}
    assert plan_line({"version": 1, "sites": sites}) == "standard/channel 0.1 at 4 sites"


def test_settings_are_shown_in_brackets():
    tuned = {"kind": "pattern", "rate": 0.1, "settings": {"size": 0.5, "\x1b": 3.0}}
    plain = {"kind": "pattern", "rate": 0.1}
    assert plan_line({"sites": {"a": tuned}}) == r"a: pattern 0.1 (size 0.5, \x1b 3)"
    assert plan_line({"sites": {"a": plain}}) == "a: pattern 0.1"
    four = {name: tuned if name < "c" else plain for name in "abcd"}
    assert plan_line({"sites": four}) == r"pattern 0.1 (size 0.5, \x1b 3) at 4 sites"


@pytest.mark.parametrize(
    ("difference", "line"),
    [
        ({"mean": 0.5}, "+0.5"),
        ({"mean": None, "low": None, "high": None, "p_value": None, "blocks": 0}, "-, 0 blocks"),
        (
            {"mean": -1.0, "low": -2.0, "high": 0.0, "p_value": 0.0, "n": 2},
            "-1.0 [-2.0, +0.0], p = 0, 2",
        ),
        ({"mean": 0.5, "blocks": 1}, "+0.5, 1 block"),
    ],
)
def test_differences_say_what_is_known(difference, line):
    found = difference_line(difference)
    assert found.startswith(line) and "1 blocks" not in found


def test_json_has_null_for_what_json_does_not_know():
    value = {"a": [math.nan, {"b": math.inf}], "c": (1.5, None), "d": "\x1b\u202e"}
    text = json_text(value)
    assert json.loads(text) == {"a": [None, {"b": None}], "c": [1.5, None], "d": "\x1b\u202e"}
    assert text.isascii() and "\x1b" not in text
