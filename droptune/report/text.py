"""Numbers, times, plans and names as one line of text that any terminal can show.

What comes from a store or a user's file is never printed as it is: a name may hold escape
sequences that move the cursor, or characters that turn the direction of writing.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from droptune.progress import duration
from droptune.rounding import rounded

NOTHING = "-"
"""What stands for a value that is not known."""
_LONGEST = 500  # characters of an error message of somebody else's


def visible(value: object) -> str:
    r"""Return text in which each character that cannot be printed is its escape, as `\x1b`."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def one_line(value: object) -> str:
    """Return text as one visible line of at most 500 characters; line ends become spaces."""
    text = visible(" ".join(str(value).split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def number(value: Any) -> str:
    """Return a measured number to four digits: 1.870; None and NaN as a dash, else text."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:#.4g}".rstrip(".")
    return short(value)


def short(value: Any) -> str:
    """Return a number that was set, without zeros at its end: 0.1; else as `number`."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else visible(value)


def seconds(value: float | None) -> str:
    """Return seconds as "0.4 s", "45 s" or "3 min 20 s"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.1f} s" if value < 10 else duration(value)


def plan_line(plan: Mapping[str, Any] | None) -> str:
    """Return a plan's JSON as a short line: up to three sites by name, more as a range.

    Example:
        >>> plan_line({"version": 1, "sites": {"0": {"kind": "standard", "rate": 0.2}}})
        '0: standard 0.2'
    """
    if plan is None:
        return NOTHING
    sites, term, training = plan["sites"], plan.get("term"), plan.get("training")
    adds = "" if term is None else f" + {term_line(term)}"
    adds += f"; {training_line(training)}" if training else ""
    if not sites:
        return f"no dropout{adds}"
    if len(sites) <= 3:
        by_site = ", ".join(
            f"{visible(name)}: {visible(entry['kind'])} {short(entry['rate'])}"
            f"{_moves(entry)}{_in_brackets(settings(entry))}"
            for name, entry in sites.items()
        )
        return by_site + adds
    kinds = "/".join(dict.fromkeys(visible(entry["kind"]) for entry in sites.values()))
    low, high = (f(entry["rate"] for entry in sites.values()) for f in (min, max))
    rates = short(low) if low == high else f"{short(low)} to {short(high)}"
    moves = dict.fromkeys(_moves(entry) for entry in sites.values())
    tuned = dict.fromkeys(_in_brackets(settings(entry)) for entry in sites.values())
    return f"{kinds} {rates}{'/'.join(moves)}{''.join(tuned)} at {len(sites)} sites{adds}"


def term_line(term: Mapping[str, Any]) -> str:
    """Return what a plan adds to the loss: "r_drop 1 ramp 0.2"."""
    parts = [term["name"], short(term["weight"])]
    parts += [f"ramp {short(term['ramp'])}"] if term.get("ramp") else []
    parts += [f"flips {short(term['flips'])}"] if term.get("flips") is not None else []
    parts += [f"at {term['site']}"] if term.get("site") is not None else []
    return visible(" ".join(parts))


def training_line(training: Mapping[str, Any]) -> str:
    """Return what a plan says of training: "lr 0.003, weight_decay 0.1"."""
    return ", ".join(f"{visible(name)} {short(value)}" for name, value in training.items())


def schedule(entry: Mapping[str, Any]) -> str:
    """Return how an entry's rate moves: "constant", "early 0.17", or "steps 0.3 0.24"."""
    if entry.get("steps"):
        return f"steps {' '.join(short(round(rate, 3)) for _, rate in entry['steps'])}"
    fraction = entry.get("fraction")
    part = "" if fraction is None else f" {short(round(fraction, 2))}"
    return f"{visible(entry.get('schedule', 'constant'))}{part}"


def settings(entry: Mapping[str, Any]) -> str:
    """Return the settings of an entry's kind that differ from its defaults: "size 0.1"."""
    given = entry.get("settings") or {}
    return ", ".join(f"{visible(name)} {short(value)}" for name, value in given.items())


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _moves(entry: Mapping[str, Any]) -> str:
    text = schedule(entry)
    return "" if text == "constant" else f" {text}"


def difference_line(difference: Mapping[str, Any]) -> str:
    """Return a paired difference as "-0.0210 [-0.0290, -0.0130], p = 0.0004, 8 blocks"."""
    low, high, p_value = (difference.get(key) for key in ("low", "high", "p_value"))
    mean = math.nan if difference["mean"] is None else difference["mean"]
    parts = [" ".join(rounded(mean, low, high)) if math.isfinite(mean) else NOTHING]
    if p_value is not None:
        parts.append(f"p = {p_value:.2g}")
    blocks = difference.get("blocks", difference.get("n"))
    if blocks is not None:
        parts.append(f"{blocks} block" + "s" * (blocks != 1))
    return ", ".join(parts)


def json_text(value: Any) -> str:
    """Return a value as JSON, in ASCII; null for NaN and infinities, which JSON does not know."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
