"""A mean and its interval as text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from droptune.rounding import rounded

NUMBERS = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((-0.009169, -0.01527, -0.003072), ["-0.0092", "[-0.0153, -0.0031]"]),
        ((-1.388e-17, -0.006468, 0.006468), ["+0.0000", "[-0.0065, +0.0065]"]),
        ((512.3, 400.0, 624.6), ["+512", "[+400, +625]"]),
        ((0.0, 0.0, 0.0), ["+0.0", "[+0.0, +0.0]"]),
        ((0.25, 0.25, 0.25), ["+0.25", "[+0.25, +0.25]"]),
        ((0.12345, None, None), ["+0.123"]),
    ],
)
def test_the_interval_says_how_many_digits_mean_something(numbers, text):
    assert rounded(*numbers) == text


@given(mean=NUMBERS, half=st.floats(1e-9, 1e6))
def test_nothing_is_off_by_more_than_a_twentieth_of_the_half_width(mean, half):
    shown, interval = rounded(mean, mean - half, mean + half)
    low, high = (float(end) for end in interval.strip("[]").split(", "))
    for value, text in ((mean, float(shown)), (mean - half, low), (mean + half, high)):
        assert math.isclose(value, text, rel_tol=1e-12, abs_tol=0.0501 * half + 1e-11)
