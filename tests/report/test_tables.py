"""The tables: what they show, and what they never let through."""

import contextlib
import io

import pytest

from droptune.report import tables

EVIL = "\x1b[31mred\x1b[0m [bold]loud[/bold] :smile: \u202e\n\r\x07"
PLAN = {
    "version": 1,
    "sites": {
        "0": {"kind": "standard", "rate": 0.25, "schedule": "constant"},
        "2": {"kind": "channel", "rate": 0.5, "schedule": "constant"},
    },
}
BEST = {
    "study": "mine",
    "verdict": "helps",
    "plan": PLAN,
    "objective": "val_loss",
    "best": {"arm": "finalist 1", "value": 0.4, "trial": 12, "search_value": 0.39},
    "control": {"arm": "no dropout", "value": 0.421, "trial": 0, "search_value": 0.43},
    "difference": {
        "mean": -0.021,
        "low": -0.029,
        "high": -0.013,
        "p_value": 0.0004,
        "blocks": 8,
        "level": 0.95,
    },
    "test": {
        "test_loss": {
            "best": 0.41,
            "control": 0.43,
            "difference": {"mean": -0.02, "low": -0.03, "high": -0.01, "p_value": 0.001, "n": 8},
        }
    },
}
SO_FAR = {
    **BEST,
    "verdict": "undecided",
    "best": {"trial": 3, "value": 0.4},
    "control": {"trial": 0, "value": 0.5},
    "difference": None,
    "test": None,
}
TRIAL = {
    "number": 3,
    "state": "complete",
    "value": 0.5,
    "values": {"val_loss": 0.5},
    "epochs": 2,
    "seconds": 1.25,
    "plan": PLAN,
    "name": None,
    "params": {"rate": 0.25, "kind": "standard"},
    "curve": [{"epoch": n, "train_loss": 1 / n, "metrics": {"val_loss": n}} for n in range(1, 101)],
    "message": None,
    "seed": 7,
    "clock": 0,
    "trainer": "fused",
    "device": "cpu",
}


def shown(*parts, encoding: str = "utf-8") -> str:
    """Return what is printed into a pipe of this encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(stream):
        tables.show(*parts)
    stream.seek(0)
    return stream.read()


def row_of(text: str, start: str) -> str:
    """Return the first line that starts with `start`, blanks joined."""
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    return " ".join(line.split())


def test_the_answer_opens_with_the_verdict():
    text = shown(tables.best(BEST, "helps: -0.021 [-0.029, -0.013]"))
    assert text.splitlines()[0] == "helps: -0.021 [-0.029, -0.013]"
    assert shown(tables.best(BEST)).splitlines()[0] == "helps"


def test_the_answer_has_the_difference_and_both_arms():
    text = shown(tables.best(BEST))
    difference = (
        "difference -0.0210 [-0.0290, -0.0130], p = 0.0004, 8 blocks (best minus no dropout)"
    )
    assert row_of(text, "difference") == difference
    assert row_of(text, "best") == "best finalist 1 0.4000 12 0.3900"
    assert row_of(text, "no dropout") == "no dropout no dropout 0.4210 0 0.4300"
    assert row_of(text, "test_loss").endswith("0.4300 -0.020 [-0.030, -0.010], p = 0.001, 8 blocks")


def test_what_the_search_saw_stands_below_the_difference():
    seen = {**BEST, "difference": {**BEST["difference"], "search": -0.04}}
    lucky = "in the search -0.04, one seed each, with the luck of the best"
    assert row_of(shown(tables.best(seen)), "in the search") == lucky
    assert "in the search" not in shown(tables.best(BEST)).split("site")[0]


def test_the_control_is_named_as_it_was_trained():
    tuned = {**BEST, "control": {**BEST["control"], "arm": "no dropout, tuned"}}
    text = shown(tables.best(tuned))
    assert "(best minus no dropout, tuned)" in text
    assert row_of(text, "no dropout, tuned") and "no dropout, tuned" in row_of(text, "test split")
    assert "tuned" not in shown(tables.best(BEST))


def test_what_hurts_is_the_model_as_given():
    assert "(as given minus no dropout)" in shown(tables.best({**BEST, "verdict": "hurts"}))


def test_the_answer_before_a_verdict_says_that_nothing_is_confirmed():
    text = shown(tables.best(SO_FAR))
    assert text.startswith("undecided: nothing is confirmed yet")
    assert row_of(text, "best") == "best 0.4000 3" or row_of(text, "best") == "best 3 0.4000"
    assert "difference" not in text


def test_an_answer_without_anything_can_be_shown():
    nothing = dict.fromkeys(("plan", "best", "control", "difference", "test"))
    text = shown(tables.best({**SO_FAR, **nothing}))
    assert "no plan yet: no trial has finished" in text


def test_a_plan_is_a_bar_for_each_site():
    text = shown(tables.plan(PLAN))
    assert row_of(text, "0") == "0 standard 0.25 █████ constant"
    assert row_of(text, "2") == "2 channel 0.5 ██████████ constant"


def test_settings_have_a_column_where_there_are_any():
    tuned = {"kind": "pattern", "rate": 0.25, "settings": {"size": 0.1, "rotate": 15.0}}
    text = shown(tables.plan({"sites": {"a": tuned, **PLAN["sites"]}}))
    assert row_of(text, "a") == "a pattern 0.25 █████ constant size 0.1, rotate 15"
    assert "settings" in text and "settings" not in shown(tables.plan(PLAN))


def test_a_bar_has_plain_characters_where_there_are_no_others():
    text = shown(tables.plan(PLAN), encoding="ascii")
    assert row_of(text, "0") == "0 | standard | 0.25 | ##### | constant"


def test_no_dropout_is_a_plan():
    assert shown(tables.plan({"version": 1, "sites": {}})) == "plan: no dropout\n"


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.999, 3, -1])
def test_a_bar_is_never_empty_nor_too_long(rate):
    text = shown(tables.Bar(rate)).strip()
    assert (len(text) > 0) == (rate > 0)
    assert len(text) <= tables.BAR_WIDTH


def test_studies_show_the_counts_that_are_not_zero():
    counts = {"complete": 3, "pruned": 0, "failed": 1, "running": 0, "waiting": 0}
    row = {
        "name": "mine",
        "objective": "val_loss",
        "objectives": {"val_loss": "minimize"},
        "trials": counts,
        "best": 0.25,
        "verdict": None,
        "created_at": "2026-01-02T03:04:05Z",
    }
    text = shown(tables.studies([row, {**row, "name": "new", "trials": {}, "best": None}]))
    assert (
        row_of(text, "mine") == "mine 3 complete, 1 failed val_loss 0.2500 - 2026-01-02T03:04:05Z"
    )
    assert row_of(text, "new").startswith("new none val_loss - -")


def test_trials_show_value_time_and_plan():
    named = {**TRIAL, "number": 4, "state": "waiting", "value": None, "name": "0.1 everywhere"}
    text = shown(tables.trials([TRIAL, {**named, "plan": None, "seconds": None}]))
    assert row_of(text, "3") == "3 complete 0.5000 2 1.2 s 0: standard 0.25, 2: channel 0.5"
    assert row_of(text, "4") == "4 waiting - 2 - - 0.1 everywhere"


def test_a_long_plan_is_a_range_in_a_listing():
    entries = {str(n): {"kind": "standard", "rate": n / 10} for n in range(1, 6)}
    text = shown(tables.trials([{**TRIAL, "plan": {"version": 1, "sites": entries}}]))
    assert "standard 0.1 to 0.5 at 5 sites" in text


def test_sites_show_what_is_there_today():
    site = {"name": "drop", "role": "head", "layout": "NCHW", "shape": [8, 4, 4], "reach": "module"}
    found = shown(tables.sites([{**site, "kind": "standard", "rate": 0.5}]))
    assert row_of(found, "drop") == "drop head NCHW 8 x 4 x 4 module standard 0.5"
    assert shown(tables.sites([{**site, "kind": None, "rate": None}])).rstrip().endswith("-")


def test_sites_show_kinds_and_remarks_where_they_are_given():
    site = {"name": "drop", "role": "head", "layout": "NF", "shape": [8], "reach": "module"}
    site |= {"kind": None, "rate": None, "kinds": ["standard", "gaussian"]}
    found = shown(tables.sites([site, {**site, "name": "other", "remark": "be careful"}]))
    assert row_of(found, "other") == "other head NF 8 module - be careful"
    assert "kinds that fit\ndrop, other: standard, gaussian" in found


def test_a_trial_shows_a_curve_of_bounded_length_with_both_ends():
    text = shown(tables.trial(TRIAL))
    lines = [line.split() for line in text.split("val_loss")[1].splitlines()[2:] if line]
    epochs = [words[0] for words in lines if words and words[0].isdigit()]
    assert len(epochs) <= tables.CURVE_ROWS + 3
    assert epochs[0] == "1" and "100" in epochs
    assert "1 in 5 of 100 epochs; --json has all" in text


@pytest.mark.parametrize("length", [0, 1, 2, 24, 25])
def test_a_curve_of_any_length_ends_with_the_last_epoch(length):
    text = shown(tables.curve(TRIAL["curve"][:length]))
    assert (str(length) if length else "no epoch") in text


def test_a_curve_has_a_small_picture_above_each_score():
    losses = [3.0, 2.0, None, 1.0]
    rows = [{"epoch": i, "train_loss": v, "metrics": {"m": 1.0}} for i, v in enumerate(losses, 1)]
    assert row_of(shown(tables.curve(rows)), "█") == "█▅ ▁ ▁▁▁▁"
    assert len(tables.Spark(range(1000)).values) <= tables.SPARK_WIDTH
    ascii_only = shown(tables.curve(rows), encoding="ascii")
    assert ascii_only.isascii() and "\\u" not in ascii_only


def test_importance_is_a_bar_for_each_parameter_and_place():
    row = {"parameters": {"rate.a": 0.5, "kind.a": 0.3, "slope": 0.2}, "trials": 30}
    row |= {"places": {"a": 0.8, "all sites": 0.2}, "remark": None}
    text = shown(tables.importance(row))
    assert row_of(text, "rate.a") == "rate.a 50% ██████████"
    assert row_of(text, "a ").startswith("a 80% ████") and "30 trials" in text
    same = shown(tables.importance(row | {"places": {"a": 0.5, "b": 0.3, "c": 0.2}}))
    assert "place" not in same
    assert shown(tables.importance(row | {"remark": "too few"})) == "too few\n"


def test_a_study_with_a_verdict_shows_its_plan_as_bars():
    row = {
        "name": "mine",
        "created_at": "now",
        "trials": {},
        "best": 0.4,
        "definition": {},
        "environment": {},
        "sites": [],
        "verdict": {"verdict": "helps", "plan": PLAN},
        "verdicts": {},
    }
    assert row_of(shown(tables.study(row)), "0 ") == "0 standard 0.25 █████ constant"


def test_a_failed_trial_shows_why():
    text = shown(tables.trial({**TRIAL, "state": "failed", "message": "diverged", "curve": []}))
    assert row_of(text, "message") == "message diverged"


def test_a_study_shows_its_definition_and_sites():
    row = {
        "name": "mine",
        "created_at": "now",
        "trials": {},
        "best": None,
        "definition": {"epochs": 3, "training": {"lr": 0.1}},
        "environment": {"torch": "2"},
        "sites": [],
        "verdict": None,
        "verdicts": {},
    }
    text = shown(tables.study(row))
    assert text.startswith("undecided\n")
    assert row_of(text, "epochs") == "epochs 3"
    assert row_of(text, "training") == 'training {"lr": 0.1}'
    helped = {"verdict": "helps", "text": "helps: a lot"}
    assert shown(tables.study({**row, "verdict": helped})).startswith("helps: a lot\n")


def everything_evil() -> list:
    """Return each table with hostile text in every place that takes text."""
    sites = {"version": 1, "sites": {EVIL: {"kind": EVIL, "rate": 0.5, "schedule": EVIL}}}
    site = dict.fromkeys(("name", "role", "layout", "reach", "kind"), EVIL)
    study = {"name": EVIL, "objective": EVIL, "trials": {EVIL: 1}, "verdict": EVIL, "best": EVIL}
    study |= {"created_at": EVIL, "definition": {EVIL: EVIL, "x": {EVIL: EVIL}}}
    study |= {
        "objectives": {EVIL: EVIL},
        "verdicts": {EVIL: {"objective": f"x{EVIL}", "text": EVIL}},
    }
    study |= {"environment": EVIL, "sites": [{**site, "shape": [EVIL], "rate": EVIL}]}
    trial = {**TRIAL, "plan": sites, "params": {EVIL: EVIL}, "device": EVIL}
    trial |= dict.fromkeys(("name", "state", "message", "trainer"), EVIL)
    trial["values"] = {EVIL: EVIL, "x": 1.0}
    trial["curve"] = [{"epoch": 1, "train_loss": EVIL, "metrics": {EVIL: EVIL}}]
    best = {**BEST, "study": EVIL, "objective": EVIL, "plan": sites, "best": {EVIL: EVIL}}
    best["best"]["others"] = best["others"] = {EVIL: EVIL}
    best["test"] = {EVIL: {"best": EVIL}}
    return [
        tables.studies([study]),
        tables.trials([trial]),
        tables.sites(study["sites"]),
        tables.best(best, EVIL),
        tables.study({**study, "verdict": {"text": EVIL, "verdict": EVIL}}),
        tables.trial(trial),
    ]


@pytest.mark.parametrize("part", everything_evil())
def test_text_of_a_store_is_shown_and_never_obeyed(part):
    text = shown(part)
    assert not set("\x1b\u202e\r\x07") & set(text)
    assert r"\x1b[31mred\x1b[0m [bold]loud[/bold] :smile: \u202e\n\r\x07" in text


def test_plain_text_has_no_colours_even_where_they_are_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    entry = {"kind": "standard", "rate": 0.5, "schedule": "constant"}
    text = tables.plain(tables.plan({"version": 1, "sites": {"fc": entry}}))
    assert "fc" in text and "\x1b" not in text
