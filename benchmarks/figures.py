"""Figures and tables that several benchmarks print: rates, medians, Markdown."""

import numpy as np
from scipy import stats


def share(hits: list[bool]) -> dict:
    """Return a rate with its 95 % interval (Wilson 1927, as scipy has it)."""
    if not hits:
        return {"rate": None, "low": None, "high": None, "n": 0}
    found = stats.binomtest(sum(hits), len(hits))
    low, high = found.proportion_ci(method="wilson")
    return {"rate": sum(hits) / len(hits), "low": float(low), "high": float(high), "n": len(hits)}


def spread_of(values: list[float]) -> dict:
    """Return the median with the 5 and 95 % quantiles."""
    if not len(values):
        return {"median": None, "low": None, "high": None, "n": 0}
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return {"median": middle, "low": low, "high": high, "mean": np.mean(values), "n": len(values)}


def percent(rate: dict) -> str:
    """Return a rate for a table."""
    if not rate["n"]:
        return "none of 0"
    low, high = 100 * rate["low"], 100 * rate["high"]
    return f"{100 * rate['rate']:.1f} [{low:.1f}, {high:.1f}] of {rate['n']}"


def shown(spread: dict, digits: int) -> str:
    """Return a median and its quantiles for a table."""
    if not spread["n"]:
        return "-"
    middle, low, high = (f"{spread[key]:.{digits}f}" for key in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
