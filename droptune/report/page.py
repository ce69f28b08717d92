"""The page of a study: one HTML file that holds all it shows, plotly too, and asks for nothing.

All text is in the HTML itself, so it can be read, searched and printed without a script; the
figures are JSON that page.js draws. What comes from the store is escaped, and the page's
Content-Security-Policy keeps it from loading anything, whatever a name may hold.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from droptune import __version__
from droptune.errors import StudyError
from droptune.report.facts import BEST, CONTROL, TUNED, Facts
from droptune.report.text import (
    NOTHING,
    difference_line,
    number,
    one_line,
    plan_line,
    schedule,
    seconds,
    settings,
    short,
    term_line,
    training_line,
    visible,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

Row = Mapping[str, Any]

MOST_ROWS = 1000  # of a table


def page(facts: Facts, importance: Row) -> str:
    """Return a study as one self-contained HTML page.

    Args:
        facts: of the study.
        importance: as `Importance.to_json` gives it.

    Raises:
        StudyError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise StudyError(
            "the report draws with plotly, which is not installed; "
            "run `pip install 'droptune[report]'`"
        ) from None
    body = _head(facts) + _tag("main", *_sections(facts, importance)) + _foot(facts)
    home = files("droptune.report")
    parts = {name: home.joinpath(f"page.{name}").read_text("utf-8") for name in ("css", "js")}
    return Template(home.joinpath("page.html").read_text("utf-8")).substitute(
        version=__version__,
        title=f"{_text(facts.name)} - droptune",
        style=parts["css"],
        body=body,
        plotly=get_plotlyjs(),
        script=parts["js"],
    )


def _head(facts: Facts) -> str:
    verdict = facts.best["verdict"] or "undecided"
    shown = verdict.replace(" ", "-") if verdict in _SHORT else ""
    counts = [f"{n} {state}" for state, n in facts.study["trials"].items() if n]
    asked = {facts.objective: facts.direction} | facts.study["objectives"]
    about = [
        ", ".join(f"{direction} {name}" for name, direction in asked.items()),
        f"trials: {', '.join(counts) or 'none'}",
        f"made {facts.study['created_at']}",
    ]
    return _tag(
        "header",
        _tag("h1", _text(f"Study {facts.name}")),
        _tag("p", _text(facts.said), class_=f"verdict {shown}", id="verdict"),
        _tag("p", _text(" · ".join(about)), class_="note"),
    )


_SHORT = ("helps", "no benefit", "hurts", "undecided")


def _sections(facts: Facts, importance: Row) -> list[str]:
    from droptune.report import figures

    metric = facts.objective
    history = "Complete trials of the search, all on one seed: the best of many is lucky, too."
    if left := figures.outside(facts):
        history += f" Far from the others, and outside the frame: {left}."
    bands = "Mean over the confirmation's blocks; the band is one standard deviation."
    if not facts.runs:
        bands = "One run each, of the search: nothing is confirmed yet."
    shares, places = importance["parameters"], importance["places"]
    none = one_line(importance["remark"] or "")
    by_share = (
        f"How far a parameter's values in the best tenth of {importance['trials']} trials are "
        "from those in all (PED-ANOVA), as a share; effects of parameters together do not show."
    )
    grouped = len(places) < len(shares)
    return [
        _use(facts),
        _figures_in_numbers(facts),
        *_other_objectives(facts),
        _drawn("Paired differences", figures.differences(facts), *_of_differences(facts)),
        _drawn(f"{metric} over training", figures.curves(facts, metric), bands),
        _drawn("Training loss", figures.curves(facts, "train_loss"), _TRAINING),
        _drawn("Rate by site over depth", figures.rates(facts), _rates_note(facts)),
        _drawn("Search history", figures.history(facts), history),
        _drawn("Importance by parameter", figures.importance(shares), by_share, none),
        *([_drawn("Importance by place", figures.importance(places), _PLACES)] if grouped else []),
        *_calibration(figures.reliability(facts)),
        _confirmation(facts),
        _trials(facts),
    ]


_TRAINING = "With dropout on, as the steps saw it: dropout raises it even where it helps."
_PLACES = "The same, summed by the sites or roles that the parameters act on."


def _calibration(figure: "go.Figure | None") -> list[str]:
    """Return the calibration diagram; nothing where no run has stored its bins."""
    note = "Validation split at the end of the confirmation's runs, all blocks together."
    return [] if figure is None else [_drawn("Calibration", figure, note)]


# What to use, and the figures behind it


def _use(facts: Facts) -> str:
    plan = facts.best["plan"]
    title = "What to use" if facts.confirmed else "Best so far, not confirmed"
    if plan is None:
        return _section(title, _note("No plan yet: no trial has finished."))
    said = []
    if (term := plan.get("term")) is not None:
        said.append(_tag("p", _text(f"Added to the loss: {term_line(term)}")))
    if training := plan.get("training"):
        said.append(_tag("p", _text(f"Trained with: {training_line(training)}")))
    if not plan["sites"]:
        return _section(title, _tag("p", "No dropout."), *said)
    entries = plan["sites"].items()
    more = ["settings"] if any(entry.get("settings") for _, entry in entries) else []
    rows = [
        [
            _text(site),
            _text(entry["kind"]),
            _text(short(entry["rate"])),
            _bar(entry["rate"]),
            _text(schedule(entry)),
            *(_text(settings(entry)) for _ in more),
        ]
        for site, entry in entries
    ]
    heads = ["site", "kind", ">rate", "|0 to 1", "schedule", *more]
    return _section(title, _table("plan", heads, rows), *said)


def _bar(rate: float) -> str:
    width = 100 * min(max(float(rate), 0.0), 1.0)
    return f'<div><i style="width:{width:.1f}%"></i></div>'


def _figures_in_numbers(facts: Facts) -> str:
    """Return the means of winner and control, the lucky value beside them, and the test split."""
    best, control = facts.best["best"], facts.best["control"]
    if best is None:
        return _section("In numbers", _note("No trial is complete yet."))
    name = best.get("arm") or BEST
    rows = [[f"{name}, to use" if facts.confirmed else name, best], [facts.control, control or {}]]
    if control in (None, best):
        rows.pop()
    cells = [
        [
            _text(label),
            _number(row.get("value")),
            *([_number(row.get("search_value"))] if facts.confirmed else []),
            _number(row.get("trial")),
        ]
        for label, row in rows
    ]
    mean = "mean over blocks" if facts.confirmed else "value"
    heads = ["plan", f">{mean}", *([">in the search"] if facts.confirmed else []), ">trial"]
    parts = [_table("numbers", heads, cells)]
    if facts.confirmed:
        what = f"{facts.compared or 'plan'} minus {facts.control}: "
        parts.append(_tag("p", _text(what + difference_line(facts.best["difference"]))))
    parts += [_note(luck)] if (luck := _luck(best, control)) else []
    if facts.best["test"]:
        parts.append(_on_test(facts.best["test"], facts.control))
    return _section("In numbers", *parts)


def _other_objectives(facts: Facts) -> list[str]:
    """Return the verdicts on the objectives besides the first, and what is to be had of both."""
    from droptune.report import figures

    others = [name for name in facts.study["objectives"] if name != facts.objective]
    if not others:
        return []
    said = {name: (facts.study["verdicts"].get(name) or {}).get("text") for name in others}
    rows = [[_text(name), _text(text or "not confirmed yet")] for name, text in said.items()]
    table = _table("objectives", ["objective", "verdict"], rows)
    plans = "`droptune best --objective NAME` has the plan for another objective."
    note = "Complete trials of the search; what is on the front no other trial beats in all."
    return [
        _section(
            "Other objectives", table, _note(f"This page is about {facts.objective}; {plans}")
        ),
        *(
            _drawn(f"{facts.objective} and {name}", figures.trade_off(facts, name), note)
            for name in others
        ),
    ]


def _luck(best: Row, control: Row | None) -> str | None:
    """Return what the search alone would have claimed; None where the plan is no dropout."""
    found = [row.get("search_value") for row in (best, control or {})]
    if best.get("arm") in (None, CONTROL, TUNED) or None in found:
        return None
    naive = found[0] - found[1]
    return (
        f"In the search the same plan was {naive:+.3g} from no dropout, on the seed that chose it "
        "as one of the best: a lucky figure. Those over fresh seeds are the ones that hold."
    )


def _on_test(test: Row, control: str) -> str:
    rows = [
        [
            _text(metric),
            _number(means.get("best")),
            _number(means.get("control")),
            _text(difference_line(means["difference"]) if means.get("difference") else NOTHING),
        ]
        for metric, means in test.items()
        if isinstance(means, Mapping)
    ]
    return _table("test", ["test split, read once", ">plan", f">{control}", "difference"], rows)


def _of_differences(facts: Facts) -> tuple[str, str]:
    """Return what is said of the differences, and what where there are none."""
    none = "Nothing is confirmed yet: no block has both a finalist and no dropout."
    if not facts.confirmed:
        return "A point is a block, with the same seed for both; there is no verdict yet.", none
    better = "below" if facts.direction == "minimize" else "above"
    found = facts.best["difference"]
    level = found.get("level") or 0.95
    drawn = len(facts.pairs.get(facts.compared or "", ()))
    counted = found.get("blocks")
    few = f" The verdict counts {counted} of these blocks." if counted not in (None, drawn) else ""
    return (
        f"A point is a block: {facts.compared or 'the plan'} minus {facts.control} with the same "
        f"seed; {better} zero is better. The line is the mean, the band its {level:.0%} interval."
        f"{few} Other plans can be shown in the legend.",
        none,
    )


def _rates_note(facts: Facts) -> str:
    from droptune.report.figures import MOST_TRIALS

    done = facts.study["trials"].get("complete", 0)
    many = f" The best {MOST_TRIALS} of {done} trials are drawn." if done > MOST_TRIALS else ""
    return f"Beside each site the trials, the best on the left, coloured by value.{many}"


# The runs


def _confirmation(facts: Facts) -> str:
    if not facts.runs:
        return _section("Runs of the confirmation", _note("None yet."), class_="wide table")
    tests = list(dict.fromkeys(key for run in facts.runs for key in run["test"] or {}))
    names = list(facts.study["objectives"]) or [facts.objective]
    rows = [
        [
            _number(run["block"]),
            _text(run["arm"]),
            _text(run["state"]),
            *(_number((run["metrics"] or {}).get(name)) for name in names),
            *(_number((run["test"] or {}).get(key)) for key in tests),
            _number(run["epochs"]),
            _text(seconds(run["seconds"])),
            _text(one_line(run["message"] or "")),
        ]
        for run in facts.runs[:MOST_ROWS]
    ]
    heads = [">block", "plan", "state", *(f">{key}" for key in (*names, *tests))]
    heads += [">epochs", ">time", "message"]
    table = _table("runs", heads, rows)
    cut = _cut(len(facts.runs))
    return _section("Runs of the confirmation", table, *cut, class_="wide table")


def _trials(facts: Facts) -> str:
    names = list(facts.study["objectives"]) or [facts.objective]
    rows = [
        [
            _number(trial["number"]),
            _text(trial["state"]),
            *(_number((trial["values"] or {}).get(name)) for name in names),
            _number(trial["epochs"]),
            _text(seconds(trial["seconds"])),
            _text(plan_line(trial["plan"])),
            _text(trial["name"] or ""),
        ]
        for trial in facts.trials[:MOST_ROWS]
    ]
    if not rows:
        return _section("Trials of the search", _note("None yet."), class_="wide table")
    heads = [">trial", "state", *(f">{name}" for name in names)]
    heads += [">epochs", ">time", "plan", "fixed plan"]
    table = _table("trials", heads, rows)
    return _section("Trials of the search", table, *_cut(len(facts.trials)), class_="wide table")


def _cut(rows: int) -> list[str]:
    """Return what is said where a table does not show all of its rows."""
    if rows <= MOST_ROWS:
        return []
    return [_note(f"The first {MOST_ROWS} of {rows}; `droptune trials --json` has all.")]


def _foot(facts: Facts) -> str:
    known = {key: facts.study[key] for key in ("definition", "environment", "sites")}
    text = json.dumps(known, indent=2, ensure_ascii=False)
    return _tag(
        "footer",
        _tag("details", _tag("summary", "Definition and environment"), _tag("pre", _lines(text))),
        _note(f"Made by droptune {__version__}. This page loads nothing from elsewhere."),
    )


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.split("\n"))


# HTML


def _drawn(
    title: str, figure: "go.Figure | None", note: str, without: str = "Nothing to draw yet."
) -> str:
    """Return a section with a figure and a note; without a figure another note says why."""
    if figure is None:
        return _section(title, _note(without))
    data = figure.to_json()  # plotly leaves no "<" in it, so nothing ends the script
    box = f'<div class="figure" role="img" aria-label="{_text(title)}"></div>'
    json_ = f'<script type="application/json" class="plot">{data}</script>'
    return _section(title, box, json_, _note(note))


def _section(title: str, *parts: str, class_: str = "") -> str:
    return _tag("section", _tag("h2", _text(title)), *parts, class_=class_)


def _table(name: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a head that starts with ">" stands over numbers, with "|" over bars."""
    classes = ["n" if head.startswith(">") else "bar" if head[:1] == "|" else "" for head in heads]
    top = "".join(
        _tag("th", _text(head.lstrip(">|")), class_="n" if kind == "n" else "")
        for head, kind in zip(heads, classes, strict=True)
    )
    lines = (
        _tag(
            "tr", *(_tag("td", cell, class_=kind) for cell, kind in zip(row, classes, strict=True))
        )
        for row in rows
    )
    table = _tag("table", _tag("thead", _tag("tr", top)), _tag("tbody", *lines), id=name)
    return _tag("div", table, class_="scroll")


def _tag(name: str, *parts: str, **attributes: str) -> str:
    given = "".join(f' {k.rstrip("_")}="{escape(v)}"' for k, v in attributes.items() if v)
    return f"<{name}{given}>{''.join(parts)}</{name}>"


def _note(text: str) -> str:
    return _tag("p", _text(text), class_="note")


def _text(value: object) -> str:
    return escape(visible(value))


def _number(value: Any) -> str:
    return _text(number(value) if isinstance(value, float) else short(value))
