"""A whole study of two objectives: front, shared blocks, a verdict each, and going on."""

import json

import numpy as np
import pytest

from droptune.confirmation import merged
from droptune.design import Block
from droptune.errors import StudyError
from droptune.optimize import block_seed
from droptune.plan import Plan
from droptune.store import Queries
from droptune.verdict import Rules, decide, judge
from tests.small import Notes, fresh, rows, runs
from tests.tables import CELLS, cell_of, table_study

TWO = ("val_loss", "val_score")
LEFT, RIGHT = (0.3, 0.0), (0.0, 0.6)  # the cells that are best in the one and in the other


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def outcomes(loss=1.0, score=1.0):
    """Return outcomes in which LEFT gains so much in the loss, and RIGHT in the score."""

    def outcome(plan, seed, epoch):
        cell = cell_of(plan)
        noise = np.random.default_rng([seed, CELLS.index(cell)]).normal(0, 0.05, 2)
        shared = np.random.default_rng(seed).normal()
        return {
            "val_loss": 20 + shared + noise[0] - loss * (cell == LEFT),
            "val_score": 5 - shared + noise[1] + score * (cell == RIGHT),
            "test_loss": 20.0,
        }

    return outcome


def two(url, outcome=None, **changes):
    options = {"objective": TWO, "direction": (None, "maximize"), "confirm_blocks": 8}
    return table_study(url, outcome or outcomes(), **options | changes)


def answers(result):
    return [result.to_json(), *(one.to_json() for one in result.others.values())]


def trained(url):
    """Return block -> the cells that trained in it."""
    found = {}
    for _, _, block, state, plan in runs(url, "confirm"):
        if state == "complete":
            found.setdefault(block, set()).add(cell_of(Plan.from_json(json.loads(plan))))
    return found


def test_each_objective_has_its_verdict_and_its_plan(url):
    result = two(url).optimize(progress=Notes())
    score = result.others["val_score"]
    assert (result.objective, score.objective) == TWO
    assert (result.verdict.verdict, score.verdict.verdict) == ("helps", "helps")
    assert (cell_of(result.plan), cell_of(score.plan)) == (LEFT, RIGHT)
    assert result.difference.mean == pytest.approx(-1, abs=0.2) and result.difference.high < 0
    assert score.difference.mean == pytest.approx(1, abs=0.2) and score.difference.low > 0
    assert "one of 2 objectives" in str(result.verdict)
    for answer in (result, score):
        with Queries(url) as queries:
            found = queries.trial("table", answer.best["trial"])["values"]
        assert answer.best["search_value"] == found[answer.objective]
    # What the plan for the one does to the other.
    assert result.best["others"]["val_score"] == pytest.approx(score.control["value"], abs=0.2)
    found = trained(url)
    assert len(found[1]) == len(found[2]) == 4, "no dropout and three finalists choose"
    assert found[3] == {(0.0, 0.0), LEFT, RIGHT}
    assert max(found) < 10, "the blocks end as soon as both are clear"
    directions = rows(url, "SELECT objective, direction FROM droptune_verdict ORDER BY id")
    assert directions == [("val_loss", "minimize"), ("val_score", "maximize")]


def test_the_store_answers_for_each(url):
    result = two(url).optimize(progress=Notes())
    with Queries(url) as queries:
        assert queries.best("table") == queries.best("table", "loss") == result.to_json()
        other = queries.best("table", "val_score")
        assert other | {"others": {}} == result.others["val_score"].to_json()
        assert other["others"] == {"val_loss": str(result.verdict)}
        said = queries.verdict("table", "score")["text"]
        assert queries.best("table")["others"] == {"val_score": said}
        (row,) = queries.studies()
        assert row["objectives"] == {"val_loss": "minimize", "val_score": "maximize"}
        assert (row["objective"], row["direction"], row["verdict"]) == (
            "val_loss", "minimize", "helps",
        )  # fmt: skip
        trials = queries.trials("table")
        assert all(list(trial["values"]) == list(TWO) for trial in trials)
        assert [trial["value"] for trial in trials] == [t["values"]["val_loss"] for t in trials]
        assert queries.trials("table", 2) == trials[-2:]
        assert queries.trial("table", 3)["values"] == trials[3]["values"]
        assert row["best"] == min(trial["value"] for trial in trials)
        assert list(queries.study("table")["verdicts"]) == list(TWO)
        with pytest.raises(StudyError, match="no objective 'f1'; it has val_loss, val_score"):
            queries.best("table", "f1")


def test_before_a_verdict_the_best_trial_in_each_is_shown(url):
    result = two(url, confirm_blocks=0).optimize(progress=Notes())
    assert cell_of(result.plan) == LEFT and result.verdict.verdict == "undecided"
    assert cell_of(result.others["val_score"].plan) == RIGHT
    with Queries(url) as queries:
        queries._verdicts = lambda study: {}  # as before the first call has ended
        low, high = queries.best("table"), queries.best("table", "val_score")
        values = [trial["values"] for trial in queries.trials("table")]
    assert low["best"]["value"] == min(v["val_loss"] for v in values)
    assert high["best"]["value"] == max(v["val_score"] for v in values)
    assert high["objective"] == "val_score"


@pytest.mark.parametrize("same", [True, False])
def test_what_is_settled_stays_as_it_was_while_the_other_goes_on(url, same):
    """Whether the other objective goes on with the same plan, or with another."""
    calm, quiet_blocks = outcomes(score=0.0), {block_seed(0, block) for block in range(3)}

    def outcome(plan, seed, epoch):
        found, cell = calm(plan, seed, epoch), cell_of(plan)
        if seed in quiet_blocks:  # where the finalist is chosen
            return found | {"val_score": found["val_score"] + (cell == (LEFT if same else RIGHT))}
        wild = np.random.default_rng([seed, 7, CELLS.index(cell)]).normal(0, 3, 2)
        return {"val_loss": found["val_loss"] + 0.1 * wild[0], "val_score": 5 + wild[1]}

    first = two(url, outcome, confirm_blocks=8).optimize(progress=Notes())
    other = first.others["val_score"]
    assert first.verdict.verdict == "helps" and other.verdict.verdict == "undecided"
    assert first.difference.n < other.difference.n == 8
    assert trained(url)[10] == {(0.0, 0.0), LEFT if same else RIGHT}
    more = two(url, outcome, confirm_blocks=12).optimize(progress=Notes())
    assert more.to_json() | {"others": {}} == first.to_json() | {"others": {}}
    assert more.others["val_score"].difference.n > 8


@pytest.mark.parametrize("after", [4, 12, 17, 21])
def test_an_interrupted_study_ends_as_an_undisturbed_one(tmp_path, after):
    (tmp_path / "a").mkdir()
    whole = two(fresh(tmp_path / "a")).optimize(progress=Notes())
    asked, made = [], outcomes()

    def outcome(plan, seed, epoch):
        asked.append(seed)
        if len(asked) == after:
            raise KeyboardInterrupt  # as a death: nothing more is written
        return made(plan, seed, epoch)

    url = fresh(tmp_path)
    outcome.__qualname__, outcome.__module__ = made.__qualname__, made.__module__
    with pytest.raises(KeyboardInterrupt):
        two(url, outcome).optimize(progress=Notes())
    again = two(url, outcome).optimize(progress=Notes())
    assert answers(again) == answers(whole)
    assert trained(url) == trained(f"sqlite:///{tmp_path / 'a' / 'd.db'}")
    notes = Notes()
    finished = two(url, outcome).optimize(progress=notes)
    assert finished.finished_before and answers(finished) == answers(whole)
    assert rows(url, "SELECT count(*) FROM droptune_verdict") == [(2,)]


def test_other_objectives_are_another_study(url):
    two(url, confirm_blocks=0).optimize(progress=Notes())
    with pytest.raises(StudyError, match="stored with another objective, direction"):
        two(url, objective="val_loss", direction=None).optimize(progress=Notes())


def test_a_further_search_is_confirmed_anew_for_both(url):
    two(url, sampler="random", trials=4).optimize(progress=Notes())
    again = two(url, sampler="random", trials=30).optimize(progress=Notes())
    with Queries(url) as queries:
        found = [(one["objective"], one["first_block"]) for one in queries.designs("table")]
    assert [name for name, _ in found] == list(TWO) * 2
    assert found[0][1] == found[1][1] == 1 < found[2][1] == found[3][1]
    assert (cell_of(again.plan), cell_of(again.others["val_score"].plan)) == (LEFT, RIGHT)


def test_what_may_be_wrong_is_shared_among_the_objectives():
    one, both = (Rules("x", "minimize", 6, together=m) for m in (1, 2))
    assert (one.strict, both.strict) == (0.95, 0.975)
    values = {"no dropout": [1.0, 1.2, 1.1, 1.0], "finalist 1": [0.8, 1.1, 0.95, 0.9]}
    found = [decide(values, rules, "finalist 1").difference for rules in (one, both)]
    assert found[1].p_value == pytest.approx(2 * found[0].p_value)
    assert found[1].low < found[0].low and found[1].high > found[0].high


def test_without_an_effect_help_on_any_objective_is_as_rare_as_on_one():
    draw, studies = np.random.default_rng(1), 1500
    helped = {1: 0, 2: 0}
    for _ in range(studies):
        differences = draw.standard_normal((2, 6))
        for together in helped:
            rules = Rules("x", "maximize", 6, margin=1e-9, together=together)
            helped[together] += any(
                judge({"no dropout": [0.0] * n, "a": row[:n]}, rules, "a").verdict == "helps"
                for row in differences
                for n in range(3, 7)
            )
    assert helped[2] / studies < 0.032 < helped[1] / studies


def test_blocks_of_one_number_are_trained_as_one():
    def blocks(name, plans):
        return [
            Block(number, {"no dropout": Plan.none(), "finalist 1": plan}, name, 9)
            for number, plan in plans
        ]

    a, b = Plan({"2": ("standard", 0.1)}), Plan({"2": ("standard", 0.2)})
    both = merged([blocks("x", [(1, a), (2, a)]), blocks("y", [(2, b), (3, b)])])
    assert [block.number for block in both] == [1, 2, 3]
    first, second, third = both
    assert first.arms == {"no dropout": Plan.none(), "finalist 1": a}
    assert second.arms == {"no dropout": Plan.none(), "finalist 1": a, "finalist 1, objective 2": b}
    assert third.arms["finalist 1"] == b
