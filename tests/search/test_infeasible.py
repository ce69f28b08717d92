"""Plans that do not fit into memory: samplers that learn keep away from the like."""

import pytest

from droptune import rows
from droptune.errors import TransientError
from droptune.plan import Plan
from droptune.search import SAMPLERS
from tests.search.tiny import TinySpace, loss, stored

KINDS = ("standard", "gaussian", "alpha", "channel")
LARGE = ("gaussian", "channel")


def large(plan: Plan) -> bool:
    return any(entry.kind in LARGE for entry in plan.values())


def tell(one, asked, as_what: str = "infeasible") -> None:
    if large(asked.plan):
        one.tell(asked.number, state=as_what, message="too large")
    else:
        one.tell(asked.number, loss(asked.plan))


def proposed(one, trials: int, as_what: str = "infeasible") -> int:
    """Train up to so many trials in all; return how many of the new ones do not fit."""
    found = 0
    while one.finished < trials:
        asked = one.ask()
        found += large(asked.plan)
        tell(one, asked, as_what)
    return found


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 40), ("gp", 20)])
def test_samplers_that_learn_keep_away_from_the_like(search, sampler, trials):
    def of(state: str, seed: int) -> int:
        one = search(f"{state} {seed}", TinySpace(kinds=KINDS), sampler=sampler, seed=seed)
        return proposed(one, trials, state)

    told, failed = (sum(of(state, seed) for seed in range(2)) for state in ("infeasible", "fail"))
    assert told < 0.7 * failed


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 24), ("gp", 12)])
def test_a_search_that_is_opened_again_knows_them(search, sampler, trials):
    space = TinySpace(kinds=KINDS)
    one = search(space=space, sampler=sampler)
    proposed(one, trials)
    there = one.counts(), one.best(), one.ranked(99)
    one.close()
    again = search(space=space, sampler=sampler)
    assert (again.counts(), again.best(), again.ranked(99)) == there
    assert proposed(again, trials + 10) <= 3, "half would not fit by chance"


def test_another_worker_takes_them_over(search):
    space = TinySpace(kinds=KINDS)
    one, two = (search(space=space, sampler="tpe") for _ in range(2))
    for _ in range(12):
        for mine in (one, two):
            mine.sync()
            tell(mine, mine.ask())
    one.sync()
    two.sync()
    assert one.counts() == two.counts()
    assert one.counts().failed > 0
    assert one.ranked(99) == two.ranked(99)
    assert proposed(one, 36) <= 4


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_of_several_objectives_each_has_its_worst(search, url, sampler):
    space, ways = TinySpace(kinds=KINDS), ("minimize", "maximize")
    one = search(space=space, sampler=sampler, direction=ways)
    for _ in range(14):
        asked = one.ask()
        value = None if large(asked.plan) else [loss(asked.plan), -loss(asked.plan)]
        one.tell(asked.number, value, "infeasible" if value is None else "complete")
    known = stored(url)
    failed = [trial for trial in known if trial.state.name == "FAIL"]
    assert one.counts().failed == len(failed) > 0
    for trial in failed:
        before = [t.values for t in known[: trial.number] if t.values is not None]
        worst = [max(a for a, _ in before), min(b for _, b in before)] if before else None
        assert trial.user_attrs["infeasible"] == worst


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_and_never_takes_one_for_a_result(search, url, sampler):
    one = search(space=TinySpace(kinds=KINDS), sampler=sampler)
    proposed(one, 14)
    counts = one.counts()
    assert counts.complete + counts.failed == 14
    assert counts.failed == sum(trial.state.name == "FAIL" for trial in stored(url))


def test_who_was_overtaken_still_knows_what_does_not_fit(search, monkeypatch):
    """Another worker stores its trial while the server is away; who asks begins anew."""
    insert, asked = rows.insert, []
    for name in ("plain", "overtaken"):
        one = search(name, TinySpace(kinds=KINDS))
        proposed(one, 20)
        other = search(name, TinySpace(kinds=KINDS))

        def away(*arguments, other=other):
            monkeypatch.setattr(rows, "insert", insert)
            other.ask()
            raise TransientError("the server restarts")

        if name == "overtaken":
            monkeypatch.setattr(rows, "insert", away)
            with pytest.raises(TransientError, match="came in"):
                one.ask()
        else:
            other.ask()
        one.sync()
        asked.append([one.ask(live={20}).plan for _ in range(6)])
    assert asked[0] == asked[1]
