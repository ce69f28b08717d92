"""A measured mean and its interval as text, with the digits that mean something."""

import math


def rounded(mean: float, low: float | None, high: float | None) -> list[str]:
    """Return a mean and its interval as text, to two digits of the interval's half width.

    Returns:
        The mean, and the interval where there is one: `["-0.0092", "[-0.0153, -0.0031]"]`.
    """
    if low is None or high is None:
        return [f"{mean:+.3g}"]
    scale = (high - low) / 2 or abs(mean) or 1.0
    digits = min(max(1 - math.floor(math.log10(scale)), 0), 12)
    # Adding zero makes a negative zero, what rounding leaves of a tiny mean, positive.
    mean, low, high = (round(value, digits) + 0.0 for value in (mean, low, high))
    return [f"{mean:+.{digits}f}", f"[{low:+.{digits}f}, {high:+.{digits}f}]"]
