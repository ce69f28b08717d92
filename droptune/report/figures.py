"""The figures of a study's page, as plotly figures; only here is plotly known.

Colours are of the set of Okabe & Ito (https://jfly.uni-koeln.de/color/), which colour-blind
people can tell apart; arms differ in dashes and markers, too. Colours of text and grids are
the page's, which has a light and a dark dress (page.js). Numbers are plain lists of Python, so
the page holds them as they are in the store.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, quantiles, stdev
from typing import Any

import plotly.graph_objects as go

from droptune.front import front
from droptune.report.facts import AS_GIVEN, CONTROL, TUNED, Facts
from droptune.report.text import number, plan_line, visible

Row = Mapping[str, Any]

BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0f80c4", "#d55e00", "#009e73", "#e69f00", "#cc79a7"
#: Else blue and solid. Of the two without dropout curves show one.
_DRESS = {AS_GIVEN: (GREEN, "dot")} | dict.fromkeys((CONTROL, TUNED), (VERMILION, "dash"))
_OTHERS = (PURPLE, ORANGE, "#56b4e9", "#8a8a8a")
MOST_TRIALS = 500
"""Trials that are drawn; of more the best ones are, for they tell the most."""
HEIGHT = 340  # pixels
_DECADE = 8  # a curve that falls by more is drawn over a logarithmic axis


def differences(facts: Facts) -> go.Figure | None:
    """Return the paired differences by block, and the interval of their mean."""
    if not any(facts.pairs.values()):
        return None
    figure = _figure("block (seed)", f"difference of {_name(facts.named(facts.objective))}")
    figure.add_hline(0, line={"color": _DRESS[CONTROL][0], "dash": "dash", "width": 1.5})
    found = facts.best["difference"] or {}
    if found.get("low") is not None and found.get("high") is not None:
        figure.add_hrect(found["low"], found["high"], fillcolor=f"{BLUE}33", line_width=0)
    if found.get("mean") is not None:
        figure.add_hline(found["mean"], line={"color": BLUE, "width": 2})
    others = iter(_OTHERS * len(facts.pairs))
    for arm, pairs in sorted(facts.pairs.items(), key=lambda item: item[0] != facts.compared):
        first = arm == facts.compared
        marker = {"size": 9, "color": BLUE} if first else {"size": 7, "color": next(others)}
        figure.add_scatter(
            x=list(pairs),
            y=list(pairs.values()),
            mode="markers",
            name=_name(arm),
            marker=marker | {"symbol": "circle" if first else "diamond-open"},
            visible=True if first else "legendonly",
        )
    figure.update_xaxes(tickformat="d")
    return figure


def curves(facts: Facts, key: str) -> go.Figure | None:
    """Return a score over epochs: the mean over blocks, in a band of a standard deviation.

    Args:
        facts: of the study.
        key: name of a metric, or "train_loss".
    """
    figure = _figure("epoch", _name(facts.named(key)))
    found = {arm: _over_blocks(blocks, key) for arm, blocks in facts.curves.items()}
    for arm, (epochs, means, spreads) in found.items():
        if epochs:
            _add_curve(figure, arm, epochs, means, spreads)
    if max((epochs[-1] for epochs, *_ in found.values() if epochs), default=0) <= 10:
        figure.update_xaxes(dtick=1)
    least = [
        m - s for _, means, spreads in found.values() for m, s in zip(means, spreads, strict=True)
    ]
    most = max((max(means, default=0.0) for _, means, _ in found.values()), default=0.0)
    if min(least, default=0.0) > 0 and most > _DECADE * min(least):
        figure.update_yaxes(
            type="log", dtick="D2", title={"text": f"{_name(facts.named(key))}, log"}
        )
    return figure if figure.data else None


def _over_blocks(
    blocks: Iterable[Sequence[Row]], key: str
) -> tuple[list[int], list[float], list[float]]:
    """Return epochs, and mean and standard deviation over blocks at each."""
    found: dict[int, list[float]] = {}
    for rows in blocks:
        for row in rows:
            value = row["train_loss"] if key == "train_loss" else row["metrics"].get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(row["epoch"], []).append(value)
    epochs = sorted(found)
    spreads = [stdev(found[e]) if len(found[e]) > 1 else 0.0 for e in epochs]
    return epochs, [fmean(found[e]) for e in epochs], spreads


def _add_curve(
    figure: go.Figure,
    arm: str,
    epochs: Sequence[int],
    means: Sequence[float],
    spreads: Sequence[float],
) -> None:
    colour, dash = _DRESS.get(arm, (BLUE, "solid"))
    if any(spreads):
        upper = [m + s for m, s in zip(means, spreads, strict=True)]
        lower = [m - s for m, s in zip(means, spreads, strict=True)]
        figure.add_scatter(
            x=[*epochs, *reversed(epochs)],
            y=[*upper, *reversed(lower)],
            fill="toself",
            fillcolor=f"{colour}33",  # a fifth of it
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=_name(arm),
        )
    few = "lines+markers" if len(epochs) < 3 else "lines"
    line = {"color": colour, "dash": dash, "width": 2.2}
    figure.add_scatter(
        x=list(epochs), y=list(means), mode=few, name=_name(arm), line=line, legendgroup=_name(arm)
    )


def rates(facts: Facts) -> go.Figure | None:
    """Return the rate at each site over depth: of the answer, and of the trials by value."""
    depth = {site["name"]: i for i, site in enumerate(facts.study["sites"])}
    if not depth:
        return None
    figure = _figure("site, in call order", "rate (probability of dropping)")
    shown = _best_first(facts)[:MOST_TRIALS]
    if len(shown) > 1:
        _add_trials(figure, facts, shown, depth)
    chosen = (facts.best["plan"] or {}).get("sites")
    if chosen is not None:
        figure.add_scatter(
            x=list(depth.values()),
            y=[chosen.get(site, {}).get("rate", 0.0) for site in depth],
            mode="lines+markers",
            name="the plan to use" if facts.confirmed else "best so far",
            line={"color": VERMILION, "width": 3},
            marker={"size": 9},
        )
    if not figure.data:
        return None
    labels = [_name(site, 18) for site in depth]
    few = -(-len(labels) // 24)
    figure.update_xaxes(tickvals=list(depth.values())[::few], ticktext=labels[::few])
    figure.update_yaxes(rangemode="tozero")
    return figure


def _best_first(facts: Facts) -> list[Row]:
    done = [t for t in facts.trials if t["state"] == "complete" and t["value"] is not None]
    return sorted(done, key=lambda t: t["value"], reverse=facts.direction == "maximize")


def _add_trials(
    figure: go.Figure, facts: Facts, shown: Sequence[Row], depth: Mapping[str, int]
) -> None:
    """Add a point for each trial and site: beside its site by rank, coloured by value."""
    x, y, colour, text = [], [], [], []
    for rank, trial in enumerate(shown):
        aside = 0.6 * rank / (len(shown) - 1) - 0.3  # the best on the left
        for site, position in depth.items():
            x.append(position + aside)
            y.append((trial["plan"] or {"sites": {}})["sites"].get(site, {}).get("rate", 0.0))
            colour.append(trial["value"])
            text.append(f"trial {trial['number']}: {number(trial['value'])}")
    low, high = _fence([trial["value"] for trial in shown])
    bar = {"title": {"text": _name(facts.named(facts.objective)), "side": "right"}, "thickness": 12}
    marker = {"color": colour, "colorscale": "Cividis", "cmin": low, "cmax": high}
    marker |= {"size": 6, "opacity": 0.75, "colorbar": bar}
    marker["reversescale"] = facts.direction == "minimize"  # the best are yellow
    figure.add_scatter(
        x=x, y=y, mode="markers", name="trials", marker=marker, text=text, hoverinfo="text+y"
    )


def history(facts: Facts) -> go.Figure | None:
    """Return the value of each trial by number, with the best so far and fixed plans named."""
    done = [t for t in facts.trials if t["state"] == "complete" and t["value"] is not None]
    if not done:
        return None
    figure = _figure("trial", _name(facts.named(facts.objective)))
    for group, symbol, colour in (("sampled", "circle", BLUE), ("fixed plan", "star", ORANGE)):
        rows = [t for t in done if bool(t["name"]) == (group == "fixed plan")]
        if rows:
            _add_group(figure, group, rows, {"symbol": symbol, "color": colour, "size": 8})
    pick = max if facts.direction == "maximize" else min
    so_far: list[float] = []
    for trial in done:
        so_far.append(pick([*so_far[-1:], trial["value"]]))
    figure.add_scatter(
        x=[t["number"] for t in done],
        y=so_far,
        mode="lines",
        name="best so far",
        line={"color": VERMILION, "shape": "hv", "width": 2},
    )
    low, high = _fence([t["value"] for t in done])
    edge = 0.05 * (high - low) or 0.05 * abs(low) or 0.1
    figure.update_yaxes(range=[low - edge, high + edge])
    return figure


def trade_off(facts: Facts, other: str) -> go.Figure | None:
    """Return the trials by two objectives, those of the front apart.

    The front is that of all objectives, so of more than two some of its trials may look beaten.
    """
    directions = facts.study["objectives"]
    found = [t for t in facts.trials if t["state"] == "complete" and t["values"]]
    done = [t for t in found if None not in (t["values"].get(name) for name in directions)]
    if not done:
        return None
    best = front(
        [[t["values"][name] for name in directions] for t in done], list(directions.values())
    )
    groups = {"Pareto front": set(best), "other trials": {*range(len(done))} - {*best}}
    figure = _figure(_name(facts.named(facts.objective)), _name(facts.named(other)))
    for (group, chosen), colour in zip(groups.items(), (VERMILION, BLUE), strict=True):
        if rows := [done[i] for i in sorted(chosen)]:
            marker = {"color": colour, "size": 8}
            x, y = ([t["values"][name] for t in rows] for name in (facts.objective, other))
            _add_group(figure, group, rows, marker, (x, y))
    return figure


def _add_group(
    figure: go.Figure,
    name: str,
    rows: Sequence[Row],
    marker: dict,
    at: tuple[Sequence[float], Sequence[float]] | None = None,
) -> None:
    """Add trials as points at x and y; None: their value by number."""
    # A text is drawn as HTML, and a template's braces are filled in: neither may come from
    # a name in the store.
    hover = [
        _name(f"trial {t['number']} {t['name'] or ''}: {plan_line(t['plan'])}", 120) for t in rows
    ]
    x, y = at or ([t["number"] for t in rows], [t["value"] for t in rows])
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text",
        name=name,
        marker=marker,
        text=[_name(t["name"] or "", 20) for t in rows],
        textposition="top right",
        textfont={"size": 10},
        hovertext=hover,
        hoverinfo="text+y",
    )


def outside(facts: Facts) -> int:
    """Return how many trials the history leaves outside its frame."""
    values = [t["value"] for t in _best_first(facts)]
    if not values:
        return 0
    low, high = _fence(values)
    return sum(not low <= value <= high for value in values)


def _fence(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of values without far outliers, which would flatten all others.

    Tukey's outer fences, three interquartile ranges beyond the quartiles (Exploratory Data
    Analysis, 1977).
    """
    if len(values) < 8:
        return min(values), max(values)
    first, _, third = quantiles(values, n=4)
    reach = 3 * (third - first)
    inside = [v for v in values if first - reach <= v <= third + reach]
    return (min(inside), max(inside)) if inside else (min(values), max(values))


def importance(shares: Mapping[str, float]) -> go.Figure | None:
    """Return shares as horizontal bars, the highest on top."""
    if not shares:
        return None
    names = [_name(name, 28) for name in shares]
    figure = _figure("share of the importance", "")
    figure.add_bar(
        x=list(shares.values()),
        y=list(range(len(names))),
        orientation="h",
        marker={"color": BLUE},
        showlegend=False,
        text=[f"{share:.0%}" for share in shares.values()],
        textposition="auto",
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    figure.update_layout(height=max(220, 110 + 26 * len(names)))
    return figure


def reliability(facts: Facts) -> go.Figure | None:
    """Return the calibration diagram: accuracy over confidence, the blocks put together."""
    found = {arm: blocks for arm, blocks in facts.reliability.items() if blocks}
    if not found:
        return None
    figure = _figure("confidence (probability of the predicted class)", "accuracy")
    drawn = {arm: pooled(blocks) for arm, blocks in found.items()}
    least = min(min(b[:2]) for bins in drawn.values() for b in bins)
    ends = [max(0.0, least - 0.05), 1.0]
    line = {"color": "#8a8a8a", "width": 1.2}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="calibrated", line=line)
    for arm, bins in drawn.items():
        colour, dash = _DRESS.get(arm, (BLUE, "solid"))
        figure.add_scatter(
            x=[b[0] for b in bins],
            y=[b[1] for b in bins],
            mode="lines+markers",
            name=_name(arm),
            line={"color": colour, "dash": dash, "width": 2},
            text=[f"{b[2]} samples" for b in bins],
        )
    return figure


def pooled(blocks: Iterable[Sequence[Sequence[float]]]) -> list[tuple[float, float, int]]:
    """Return (confidence, accuracy, count) by bin over all blocks; empty bins are left out.

    Args:
        blocks: of each block the bins (confidence, accuracy, count), in the same order.
    """
    sums: dict[int, list[float]] = {}
    for bins in blocks:
        for place, (confidence, accuracy, count) in enumerate(bins):
            if count:
                kept = sums.setdefault(place, [0.0, 0.0, 0])
                kept[0] += confidence * count
                kept[1] += accuracy * count
                kept[2] += count
    return [(c / n, a / n, int(n)) for c, a, n in (sums[place] for place in sorted(sums))]


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure(layout=go.Layout(template=go.layout.Template()))
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 64, "r": 16, "t": 36, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif", "size": 13},
        hovermode="closest",
        showlegend=True,  # of a single arm, too
    )
    figure.update_xaxes(title={"text": x}, automargin=True, showgrid=False, zeroline=False)
    figure.update_yaxes(title={"text": y}, automargin=True, zeroline=False)
    return figure


def _name(text: object, longest: int = 40) -> str:
    """Return text of a store as plotly shows it: it reads a part of HTML."""
    said = visible(text)
    return html.escape(said if len(said) <= longest else f"{said[: longest - 1]}…", quote=False)
