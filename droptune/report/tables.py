"""Tables for a terminal of what `store.Queries` returns; the JSON forms are those rows.

Each function returns something that `show` prints. No text of a store reaches rich as
markup: every cell is a `Text` of visible characters.
"""

import io
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from droptune import gap
from droptune.report.text import (
    NOTHING,
    difference_line,
    number,
    plan_line,
    schedule,
    seconds,
    settings,
    short,
    term_line,
    training_line,
    visible,
)

Row = Mapping[str, Any]

STYLES = {
    "helps": "bold green",
    "hurts": "bold red",
    "no benefit": "bold yellow",
    "undecided": "bold",
    "failed": "red",
    "running": "cyan",
    "pruned": "dim",
    "waiting": "dim",
}
"""The colour of a verdict or of a trial's state; none for the rest."""
BAR_WIDTH = 20  # characters for rates from 0 to 1
CURVE_ROWS = 24  # epochs of a curve that are shown
SPARK_WIDTH = 16  # characters of a small picture of a curve
_HEIGHTS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_PIPED_WIDTH = 1000  # columns; what goes to a file or a program is not cut


def show(*parts: RenderableType) -> None:
    """Print to stdout: as wide as the terminal, or uncut and uncoloured into a pipe."""
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    sys.stdout.write(_rendered(Console(file=sys.stdout, width=width, highlight=False), parts))
    sys.stdout.flush()  # a broken pipe shows here, not when Python ends


def plain(*parts: RenderableType) -> str:
    """Return as text what `show` prints into a pipe."""
    paper = Console(file=io.StringIO(), width=_PIPED_WIDTH, highlight=False, color_system=None)
    return _rendered(paper, parts)


def _rendered(console: Console, parts: Iterable[RenderableType]) -> str:
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


class Bar:
    """A rate in [0, 1) as a bar; of `#` where the terminal's encoding has no blocks."""

    def __init__(self, rate: float) -> None:
        self.rate = min(max(float(rate), 0.0), 1.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(self.rate * BAR_WIDTH * 8)
        if options.ascii_only:
            yield Text("#" * max(round(eighths / 8), eighths > 0))
        else:
            part = _EIGHTHS[eighths % 8].strip()
            yield Text("█" * (eighths // 8) + part, style="cyan")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(BAR_WIDTH, BAR_WIDTH)


class Spark:
    """Numbers from the first to the last as a line of small blocks; a gap where there is none.

    The blocks run from the least number to the highest. Nothing where the terminal's encoding
    has no blocks.
    """

    def __init__(self, values: Sequence[float | None]) -> None:
        step = -(-len(values) // SPARK_WIDTH) or 1
        self.values = values[::step]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        known = [v for v in self.values if _is_number(v)]
        if options.ascii_only or not known:
            yield Text("")
            return
        low, span = min(known), (max(known) - min(known)) or 1.0
        yield Text(
            "".join(
                _HEIGHTS[round(7 * (v - low) / span)] if _is_number(v) else " " for v in self.values
            ),
            style="cyan",
        )

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self.values), len(self.values))


def studies(rows: Sequence[Row]) -> RenderableType:
    """Return a table of studies, as `Queries.studies` returns them."""
    table = _table("study", "trials", "objective", "best", "verdict", "created")
    for row in rows:
        table.add_row(
            _text(row["name"]),
            _text(_counts(row["trials"])),
            _text(", ".join(row["objectives"]) or NOTHING),
            _number(row["best"]),
            _styled(row["verdict"] or NOTHING),
            _text(row["created_at"]),
        )
    return table


def trials(rows: Sequence[Row]) -> RenderableType:
    """Return a table of trials, as `Queries.trials` returns them."""
    names = list(dict.fromkeys(name for row in rows for name in row["values"] or ()))
    names = names if len(names) > 1 else []
    heads = [f">{name}" for name in names] or [">value"]
    table = _table(">trial", "state", *heads, ">epochs", ">time", "plan", "fixed plan")
    for row in rows:
        values = [(row["values"] or {}).get(name) for name in names] or [row["value"]]
        table.add_row(
            _number(row["number"]),
            _styled(row["state"]),
            *map(_number, values),
            _number(row["epochs"]),
            _text(seconds(row["seconds"])),
            _text(plan_line(row["plan"])),
            _text(row["name"] or ""),
        )
    return table


def sites(rows: Iterable[Row]) -> RenderableType:
    """Return a table of sites, as `Site.described` or `Queries.study` gives them.

    Calls, kinds and remarks, which no store keeps, are left out where they are not given. Kinds
    stand below the table, once for all sites that they fit.
    """
    rows = list(rows)
    calls = [">calls"] if any(row.get("calls") for row in rows) else []
    more = ["remark"] if any(row.get("remark") for row in rows) else []
    table = _table("site", "role", "layout", "shape", "reach", "dropout today", *calls, *more)
    for row in rows:
        parts = row["kind"], None if row["rate"] is None else short(row["rate"])
        today = " ".join(filter(None, parts)) or NOTHING
        table.add_row(
            _text(row["name"]),
            _text(row["role"]),
            _text(row["layout"]),
            _text(" x ".join(map(str, row["shape"])) or NOTHING),
            _text(row["reach"]),
            _text(today),
            *(_number(row.get("calls")) for _ in calls),
            *(_text(row.get("remark") or "") for _ in more),
        )
    fitting: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.get("kinds"):
            fitting.setdefault(tuple(row["kinds"]), []).append(row["name"])
    lines = [f"{', '.join(names)}: {', '.join(kinds)}" for kinds, names in fitting.items()]
    return Group(table, *map(_text, ["", "kinds that fit", *lines])) if lines else table


def best(row: Row, text: str | None = None) -> RenderableType:
    """Return the answer of a study: verdict, plan, and the figures behind it.

    Args:
        row: as `Queries.best` returns it.
        text: the verdict in one line; None: the word alone.
    """
    heading = _text(text or _verdict_line(row), style=STYLES.get(row["verdict"], "bold"))
    facts = {"study": _text(row["study"]), "objective": _text(row["objective"] or NOTHING)}
    if row["difference"]:
        facts["difference"] = _text(f"{difference_line(row['difference'])}{_compares(row)}")
        if (lucky := row["difference"].get("search")) is not None:
            facts["in the search"] = _text(
                f"{lucky:+.3g}, one seed each, with the luck of the best"
            )
    if row.get("fit"):
        facts["fit"] = _text(gap.sentence(row["fit"]))
    facts |= {f"on {name}": _text(said) for name, said in (row.get("others") or {}).items()}
    parts = [heading, _facts(facts), _text(""), plan(row["plan"])]
    if row["best"]:
        parts += [_text(""), _compared(row)]
    if row["test"]:
        parts += [_text(""), _on_test(row["test"])]
    return Group(*parts)


def plan(value: Row | None) -> RenderableType:
    """Return a plan's JSON as one bar for each site; the bar's full width is rate 1."""
    if value is None:
        return _text("no plan yet: no trial has finished")
    term, training = value.get("term"), value.get("training")
    more = [f"added to the loss: {term_line(term)}"] if term is not None else []
    more += [f"trained with: {training_line(training)}"] if training else []
    rates = _rates(value) if value["sites"] else _text("plan: no dropout")
    return Group(rates, *map(_text, more)) if more else rates


def _rates(value: Row) -> RenderableType:
    entries = value["sites"]
    more = ["settings"] if any(entry.get("settings") for entry in entries.values()) else []
    table = _table("site", "kind", ">rate", "", "schedule", *more)
    for name, entry in entries.items():
        table.add_row(
            _text(name),
            _text(entry["kind"]),
            _text(short(entry["rate"])),
            Bar(entry["rate"]),
            _text(schedule(entry)),
            *(_text(settings(entry)) for _ in more),
        )
    return table


def study(row: Row) -> RenderableType:
    """Return all of one study, as `Queries.study` returns it."""
    verdict = row["verdict"] or {}
    said = verdict.get("text") or verdict.get("verdict") or "undecided"
    heading = _text(said, style=STYLES.get(verdict.get("verdict", "undecided"), "bold"))
    facts = {
        "study": _text(row["name"]),
        "created": _text(row["created_at"]),
        "trials": _text(_counts(row["trials"])),
        "best value": _number(row["best"]),
    }
    facts |= {key: _text(_brief(value)) for key, value in row["definition"].items()}
    facts["environment"] = _text(_brief(row["environment"]))
    others = (v for v in row["verdicts"].values() if v["objective"] != row["objective"])
    facts |= {f"on {v['objective']}": _text(v["text"]) for v in others}
    chosen = [plan(verdict["plan"]), _text("")] if verdict.get("plan") else []
    return Group(heading, _facts(facts), _text(""), *chosen, sites(row["sites"]))


def trial(row: Row) -> RenderableType:
    """Return all of one trial, as `Queries.trial` returns it."""
    facts = {"trial": _number(row["number"]), "state": _styled(row["state"])}
    if row["name"]:
        facts["fixed plan"] = _text(row["name"])
    if row["message"]:
        facts["message"] = _text(row["message"])
    values = row["values"] or {}
    values = values if len(values) > 1 else {"value": row["value"]}
    facts |= {key: _number(value) for key, value in values.items()}
    facts |= {key: _number(row[key]) for key in ("epochs", "seed", "clock")}
    facts["time"] = _text(seconds(row["seconds"]))
    facts |= {key: _text(row[key] or NOTHING) for key in ("trainer", "device")}
    facts |= {f"param {key}": _text(short(value)) for key, value in row["params"].items()}
    parts = (_facts(facts), plan(row["plan"]), curve(row["curve"]))
    return Group(*(part for found in parts for part in (found, _text(""))))


def curve(rows: Sequence[Row]) -> RenderableType:
    """Return a table of scores by epoch under a small picture of each score.

    24 rows at most, evenly spaced, with the last.
    """
    if not rows:
        return _text("no epoch is stored yet")
    metrics = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    table = _table(">epoch", ">train_loss", *(f">{key}" for key in metrics))
    table.add_row(
        "", *(Spark(_scores(rows, key)) for key in ("train_loss", *metrics)), end_section=True
    )
    step = -(-len(rows) // CURVE_ROWS)
    shown = [*rows[: len(rows) - 1 : step], rows[-1]]
    for row in shown:
        values = (row["metrics"].get(key) for key in metrics)
        table.add_row(*map(_number, (row["epoch"], row["train_loss"], *values)))
    if step == 1:
        return table
    return Group(table, _text(f"1 in {step} of {len(rows)} epochs; --json has all", "dim"))


def importance(row: Row) -> RenderableType:
    """Return the shares of an `Importance` in JSON as bars, by parameter and by place."""
    if row["remark"]:
        return _text(row["remark"])
    parts: list[RenderableType] = []
    for title, shares in (("parameter", row["parameters"]), ("place", row["places"])):
        if title == "place" and len(shares) == len(row["parameters"]):
            continue  # the same bars once more
        table = _table(title, ">share", "")
        for name, share in shares.items():
            table.add_row(_text(name), _text(f"{share:.0%}"), Bar(share))
        parts += [table, _text("")]
    said = f"how far the best tenth of {row['trials']} trials is from all of them (PED-ANOVA)"
    return Group(*parts, _text(said, "dim"))


def _scores(rows: Sequence[Row], key: str) -> list[float | None]:
    return [row["train_loss"] if key == "train_loss" else row["metrics"].get(key) for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _compares(row: Row) -> str:
    """Return what the difference is a difference of."""
    arms = {"helps": "best", "hurts": "as given"}
    return f" ({arms.get(row['verdict'], 'chosen finalist')} minus no dropout)"


def _verdict_line(row: Row) -> str:
    if row["verdict"] == "undecided" and row["difference"] is None:
        return "undecided: nothing is confirmed yet, this is the best trial so far"
    return str(row["verdict"])


def _compared(row: Row) -> RenderableType:
    """Return the figures of the plan and of no dropout, one below the other."""
    rows = {"best": row["best"], "no dropout": row["control"]}
    if row["control"] in (None, row["best"]):
        del rows["no dropout"]
    others = list(row["best"].get("others") or ())
    rows = {key: {**values, **(values.get("others") or {})} for key, values in rows.items()}
    names = {"value": f">{row['objective']}", "trial": ">trial", "search_value": ">in search"}
    names |= {name: f">{name}" for name in others}
    keys = list(dict.fromkeys(key for values in rows.values() for key in values if key != "others"))
    table = _table("", *(names.get(key, key) for key in keys))
    for name, values in rows.items():
        table.add_row(_text(name), *(_number(values.get(key)) for key in keys))
    return table


def _on_test(test: Row) -> RenderableType:
    """Return the means on the test split, one row a metric."""
    table = _table("test split", ">best", ">no dropout", "difference")
    for metric, means in test.items():
        difference = means.get("difference")
        table.add_row(
            _text(metric),
            _number(means.get("best")),
            _number(means.get("control")),
            _text(difference_line(difference) if difference else NOTHING),
        )
    return table


def _counts(counts: Mapping[str, int]) -> str:
    """Return how many trials there are in which state: "3 complete, 1 failed"."""
    parts = [f"{count} {visible(state)}" for state, count in counts.items() if count]
    return ", ".join(parts) or "none"


def _brief(value: Any) -> str:
    """Return a JSON value as one line."""
    if isinstance(value, str | int | float | None):
        return short(value)
    return json.dumps(value, ensure_ascii=False)


def _table(*headers: str) -> Table:
    """Return an empty table; a header that starts with ">" stands over numbers."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
    for header in headers:
        name = header.removeprefix(">")
        right = header.startswith(">")
        table.add_column(
            _text(name),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    return table


def _facts(facts: Mapping[str, Text]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(_text(name), value)
    return table


def _text(value: object, style: str = "") -> Text:
    return Text(visible(value), style=style)


def _styled(word: str) -> Text:
    return _text(word, STYLES.get(word, ""))


def _number(value: Any) -> Text:
    return Text(number(value))
