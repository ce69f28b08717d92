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

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from droptune import gap
from droptune.report.cells import number_cell, table_of, text_cell
from droptune.report.text import (
    NOTHING,
    difference_line,
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
    table = table_of("study", "trials", "objective", "best", "verdict", "created")
    for row in rows:
        table.add_row(
            text_cell(row["name"]),
            text_cell(_counts(row["trials"])),
            text_cell(", ".join(row["objectives"]) or NOTHING),
            number_cell(row["best"]),
            _styled(row["verdict"] or NOTHING),
            text_cell(row["created_at"]),
        )
    return table


def trials(rows: Sequence[Row]) -> RenderableType:
    """Return a table of trials, as `Queries.trials` returns them."""
    names = list(dict.fromkeys(name for row in rows for name in row["values"] or ()))
    names = names if len(names) > 1 else []
    heads = [f">{name}" for name in names] or [">value"]
    table = table_of(">trial", "state", *heads, ">epochs", ">time", "plan", "fixed plan")
    for row in rows:
        values = [(row["values"] or {}).get(name) for name in names] or [row["value"]]
        table.add_row(
            number_cell(row["number"]),
            _styled(row["state"]),
            *map(number_cell, values),
            number_cell(row["epochs"]),
            text_cell(seconds(row["seconds"])),
            text_cell(plan_line(row["plan"])),
            text_cell(row["name"] or ""),
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
    table = table_of("site", "role", "layout", "shape", "reach", "dropout today", *calls, *more)
    for row in rows:
        parts = row["kind"], None if row["rate"] is None else short(row["rate"])
        today = " ".join(filter(None, parts)) or NOTHING
        table.add_row(
            text_cell(row["name"]),
            text_cell(row["role"]),
            text_cell(row["layout"]),
            text_cell(" x ".join(map(str, row["shape"])) or NOTHING),
            text_cell(row["reach"]),
            text_cell(today),
            *(number_cell(row.get("calls")) for _ in calls),
            *(text_cell(row.get("remark") or "") for _ in more),
        )
    fitting: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.get("kinds"):
            fitting.setdefault(tuple(row["kinds"]), []).append(row["name"])
    lines = [f"{', '.join(names)}: {', '.join(kinds)}" for kinds, names in fitting.items()]
    return Group(table, *map(text_cell, ["", "kinds that fit", *lines])) if lines else table


def best(row: Row, text: str | None = None) -> RenderableType:
    """Return the answer of a study: verdict, plan, and the figures behind it.

    Args:
        row: as `Queries.best` returns it.
        text: the verdict in one line; None: the word alone.
    """
    heading = text_cell(text or _verdict_line(row), style=STYLES.get(row["verdict"], "bold"))
    facts = {"study": text_cell(row["study"]), "objective": text_cell(row["objective"] or NOTHING)}
    if row["difference"]:
        facts["difference"] = text_cell(f"{difference_line(row['difference'])}{_compares(row)}")
        if (lucky := row["difference"].get("search")) is not None:
            facts["in the search"] = text_cell(
                f"{lucky:+.3g}, one seed each, with the luck of the best"
            )
    if row.get("fit"):
        facts["fit"] = text_cell(gap.sentence(row["fit"]))
    facts |= {f"on {name}": text_cell(said) for name, said in (row.get("others") or {}).items()}
    parts = [heading, _facts(facts), text_cell(""), plan(row["plan"])]
    if row["best"]:
        parts += [text_cell(""), _compared(row)]
    if row["test"]:
        parts += [text_cell(""), _on_test(row["test"], _control(row))]
    return Group(*parts)


def plan(value: Row | None) -> RenderableType:
    """Return a plan's JSON as one bar for each site; the bar's full width is rate 1."""
    if value is None:
        return text_cell("no plan yet: no trial has finished")
    term, training = value.get("term"), value.get("training")
    more = [f"added to the loss: {term_line(term)}"] if term is not None else []
    more += [f"trained with: {training_line(training)}"] if training else []
    rates = _rates(value) if value["sites"] else text_cell("plan: no dropout")
    return Group(rates, *map(text_cell, more)) if more else rates


def _rates(value: Row) -> RenderableType:
    entries = value["sites"]
    more = ["settings"] if any(entry.get("settings") for entry in entries.values()) else []
    table = table_of("site", "kind", ">rate", "", "schedule", *more)
    for name, entry in entries.items():
        table.add_row(
            text_cell(name),
            text_cell(entry["kind"]),
            text_cell(short(entry["rate"])),
            Bar(entry["rate"]),
            text_cell(schedule(entry)),
            *(text_cell(settings(entry)) for _ in more),
        )
    return table


def study(row: Row) -> RenderableType:
    """Return all of one study, as `Queries.study` returns it."""
    verdict = row["verdict"] or {}
    said = verdict.get("text") or verdict.get("verdict") or "undecided"
    heading = text_cell(said, style=STYLES.get(verdict.get("verdict", "undecided"), "bold"))
    facts = {
        "study": text_cell(row["name"]),
        "created": text_cell(row["created_at"]),
        "trials": text_cell(_counts(row["trials"])),
        "best value": number_cell(row["best"]),
    }
    facts |= {key: text_cell(_brief(value)) for key, value in row["definition"].items()}
    facts["environment"] = text_cell(_brief(row["environment"]))
    others = (v for v in row["verdicts"].values() if v["objective"] != row["objective"])
    facts |= {f"on {v['objective']}": text_cell(v["text"]) for v in others}
    chosen = [plan(verdict["plan"]), text_cell("")] if verdict.get("plan") else []
    return Group(heading, _facts(facts), text_cell(""), *chosen, sites(row["sites"]))


def trial(row: Row) -> RenderableType:
    """Return all of one trial, as `Queries.trial` returns it."""
    facts = {"trial": number_cell(row["number"]), "state": _styled(row["state"])}
    if row["name"]:
        facts["fixed plan"] = text_cell(row["name"])
    if row["message"]:
        facts["message"] = text_cell(row["message"])
    values = row["values"] or {}
    values = values if len(values) > 1 else {"value": row["value"]}
    facts |= {key: number_cell(value) for key, value in values.items()}
    facts |= {key: number_cell(row[key]) for key in ("epochs", "seed", "clock")}
    facts["time"] = text_cell(seconds(row["seconds"]))
    facts |= {key: text_cell(row[key] or NOTHING) for key in ("trainer", "device")}
    facts |= {f"param {key}": text_cell(short(value)) for key, value in row["params"].items()}
    parts = (_facts(facts), plan(row["plan"]), curve(row["curve"]))
    return Group(*(part for found in parts for part in (found, text_cell(""))))


def curve(rows: Sequence[Row]) -> RenderableType:
    """Return a table of scores by epoch under a small picture of each score.

    24 rows at most, evenly spaced, with the last.
    """
    if not rows:
        return text_cell("no epoch is stored yet")
    metrics = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    table = table_of(">epoch", ">train_loss", *(f">{key}" for key in metrics))
    table.add_row(
        "", *(Spark(_scores(rows, key)) for key in ("train_loss", *metrics)), end_section=True
    )
    step = -(-len(rows) // CURVE_ROWS)
    shown = [*rows[: len(rows) - 1 : step], rows[-1]]
    for row in shown:
        values = (row["metrics"].get(key) for key in metrics)
        table.add_row(*map(number_cell, (row["epoch"], row["train_loss"], *values)))
    if step == 1:
        return table
    return Group(table, text_cell(f"1 in {step} of {len(rows)} epochs; --json has all", "dim"))


def importance(row: Row) -> RenderableType:
    """Return the shares of an `Importance` in JSON as bars, by parameter and by place."""
    if row["remark"]:
        return text_cell(row["remark"])
    parts: list[RenderableType] = []
    for title, shares in (("parameter", row["parameters"]), ("place", row["places"])):
        if title == "place" and len(shares) == len(row["parameters"]):
            continue  # the same bars once more
        table = table_of(title, ">share", "")
        for name, share in shares.items():
            table.add_row(text_cell(name), text_cell(f"{share:.0%}"), Bar(share))
        parts += [table, text_cell("")]
    said = f"how far the best tenth of {row['trials']} trials is from all of them (PED-ANOVA)"
    return Group(*parts, text_cell(said, "dim"))


def _scores(rows: Sequence[Row], key: str) -> list[float | None]:
    return [row["train_loss"] if key == "train_loss" else row["metrics"].get(key) for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _compares(row: Row) -> str:
    """Return what the difference is a difference of."""
    arms = {"helps": "best", "hurts": "as given"}
    return f" ({arms.get(row['verdict'], 'chosen finalist')} minus {_control(row)})"


def _control(row: Row) -> str:
    """Return what was compared with: no dropout, in the study's own training or as tuned."""
    return (row["control"] or {}).get("arm") or "no dropout"


def _verdict_line(row: Row) -> str:
    if row["verdict"] == "undecided" and row["difference"] is None:
        return "undecided: nothing is confirmed yet, this is the best trial so far"
    return str(row["verdict"])


def _compared(row: Row) -> RenderableType:
    """Return the figures of the plan and of no dropout, one below the other."""
    rows = {"best": row["best"]}
    if row["control"] not in (None, row["best"]):
        rows[_control(row)] = row["control"]
    others = list(row["best"].get("others") or ())
    rows = {key: {**values, **(values.get("others") or {})} for key, values in rows.items()}
    names = {"value": f">{row['objective']}", "trial": ">trial", "search_value": ">in search"}
    names |= {name: f">{name}" for name in others}
    keys = list(dict.fromkeys(key for values in rows.values() for key in values if key != "others"))
    table = table_of("", *(names.get(key, key) for key in keys))
    for name, values in rows.items():
        table.add_row(text_cell(name), *(number_cell(values.get(key)) for key in keys))
    return table


def _on_test(test: Row, control: str) -> RenderableType:
    """Return the means on the test split, of the best plan and the control, one row a metric."""
    table = table_of("test split", ">best", f">{control}", "difference")
    for metric, means in test.items():
        difference = means.get("difference")
        table.add_row(
            text_cell(metric),
            number_cell(means.get("best")),
            number_cell(means.get("control")),
            text_cell(difference_line(difference) if difference else NOTHING),
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


def _facts(facts: Mapping[str, Text]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(text_cell(name), value)
    return table


def _styled(word: str) -> Text:
    return text_cell(word, STYLES.get(word, ""))
