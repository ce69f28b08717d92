"""The figures: their numbers, their frames, and what there is none of."""

from dataclasses import replace

import pytest

from droptune.report.facts import Facts, gather
from droptune.store.drawn import Drawn
from tests.report.storing import EVIL, whole

figures = pytest.importorskip("droptune.report.figures", exc_type=ImportError)


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> Facts:
    url = f"sqlite:///{tmp_path_factory.mktemp('figures') / 'droptune.db'}"
    whole(url)
    with Drawn(url) as queries:
        return gather(queries, "mine")


def trace(figure, name: str):
    return next(t for t in figure.data if t.name == name)


def test_the_differences_are_points_by_block_and_the_interval_a_band(facts):
    figure = figures.differences(facts)
    points = trace(figure, "finalist 1")
    assert dict(zip(points.x, points.y, strict=True)) == facts.pairs["finalist 1"]
    assert trace(figure, "finalist 2").visible == "legendonly"
    found = facts.best["difference"]
    spans = {(shape.y0, shape.y1) for shape in figure.layout.shapes}
    assert spans == {(0, 0), (found["mean"], found["mean"]), (found["low"], found["high"])}


def test_a_curve_is_the_mean_over_blocks_in_a_band_of_a_standard_deviation(facts):
    rows = [[{"epoch": 1, "train_loss": None, "metrics": {"m": v}}] for v in (1.0, 3.0, None)]
    figure = figures.curves(replace(facts, curves={"no dropout": rows}), "m")
    band, mean = figure.data
    assert list(mean.y) == [2.0] and list(mean.x) == [1]
    assert list(band.y) == pytest.approx([2 + 2**0.5, 2 - 2**0.5])


def test_a_curve_that_falls_far_stands_over_a_logarithmic_axis(facts):
    def drawn(*values):
        rows = [{"epoch": i, "train_loss": v, "metrics": {}} for i, v in enumerate(values, 1)]
        return figures.curves(replace(facts, curves={"a": [rows]}), "train_loss").layout.yaxis

    assert drawn(10.0, 1.0).type == "log"
    assert drawn(2.0, 1.0).type is None
    assert drawn(10.0, -1.0).type is None  # such as a log-likelihood


def test_scores_that_are_all_missing_give_no_figure(facts):
    rows = [{"epoch": 1, "train_loss": None, "metrics": {"val_loss": None}}]
    lost = replace(facts, curves={"no dropout": [rows]}, pairs={}, trials=[], reliability={})
    assert figures.curves(lost, "val_loss") is None
    assert figures.differences(lost) is None
    assert figures.history(lost) is None
    assert figures.reliability(lost) is None
    assert figures.importance({}) is None


def test_the_history_has_each_complete_trial_and_the_best_so_far(facts):
    figure = figures.history(facts)
    done = [t for t in facts.trials if t["state"] == "complete"]
    assert set(trace(figure, "fixed plan").x) == {0, 1}
    assert set(trace(figure, "sampled").x) == {t["number"] for t in done} - {0, 1}
    best = list(trace(figure, "best so far").y)
    assert best == sorted(best, reverse=True) and best[-1] == min(t["value"] for t in done)
    other = figures.history(replace(facts, direction="maximize"))
    assert trace(other, "best so far").y[-1] == max(t["value"] for t in done)


def test_one_wild_trial_does_not_flatten_the_others(facts):
    done = [t for t in facts.trials if t["state"] == "complete"]
    wild = replace(facts, trials=[*done, done[0] | {"number": 99, "value": 1e9}])
    low, high = figures.history(wild).layout.yaxis.range
    assert high < 10 and figures.outside(wild) == 1
    assert figures.outside(facts) == 0
    assert 99 in trace(figures.history(wild), "fixed plan").x  # zooming out finds it


def test_the_rates_are_those_of_the_plan_at_each_site_in_order(facts):
    figure = figures.rates(facts)
    assert list(trace(figure, "the plan to use").y) == [0.0, 0.2, 0.0]
    assert list(figure.layout.xaxis.ticktext) == ["@input", "1", "3&lt;b&gt;"]
    points = trace(figure, "trials")
    assert len(points.x) == 3 * sum(t["state"] == "complete" for t in facts.trials)
    best = min((t for t in facts.trials if t["value"] is not None), key=lambda t: t["value"])
    assert points.text[0].startswith(f"trial {best['number']}:")


def test_only_so_many_trials_are_drawn(facts, monkeypatch):
    monkeypatch.setattr(figures, "MOST_TRIALS", 5)
    assert len(trace(figures.rates(facts), "trials").x) == 15


def test_bins_of_several_blocks_are_put_together():
    one, other = [[0.5, 0.0, 2], [0.9, 1.0, 2]], [[0.7, 1.0, 6], [0.0, 0.0, 0]]
    assert figures.pooled([one, other]) == [
        (pytest.approx(0.65), pytest.approx(0.75), 8),
        (0.9, 1.0, 2),
    ]


def test_no_name_is_read_as_html(facts):
    odd = replace(
        facts,
        objective=EVIL,
        trials=[t | {"name": EVIL} for t in facts.trials],
        pairs={EVIL: {1: 0.5}},
        curves={EVIL: facts.curves["no dropout"]},
    )
    for figure in (figures.history(odd), figures.differences(odd), figures.curves(odd, "val_loss")):
        text = figure.to_json()
        assert "<b>" not in text and "<img" not in text and "\\u001b" not in text
