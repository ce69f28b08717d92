"""Confirmation in a whole study: stages, the stored design, going on, and later rounds."""

import json
import math
import zlib

import pytest
from sqlalchemy import text

from droptune.confirmation import Confirmation, merged
from droptune.plan import Plan
from droptune.store import Queries, Store, Workers
from droptune.trainers import SerialTrainer
from droptune.watch import NothingFree
from tests.small import Notes, fresh, plain, rows, runs, study

BLOCKS = 6


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def designs(url):
    with Queries(url) as queries:
        return queries.designs("mine")


def by_block(url):
    """Return block -> the arms that trained to an end in it."""
    found = {}
    for _, arm, block, state, _ in runs(url, "confirm"):
        if state in ("complete", "failed"):
            found.setdefault(block, set()).add(arm)
    return found


def scored(monkeypatch, value):
    """Let the validation loss be `value(plan, seed)`, whatever was trained."""
    score, begin = SerialTrainer._score, SerialTrainer.begin

    def began(self, seed, *args):
        self.seed_of_block = seed
        return begin(self, seed, *args)

    def replaced(self, model, split, prefix):
        (plan,) = [m.plan for m in self._members.values() if m.model is model]
        return score(self, model, split, prefix) | {
            f"{prefix}_loss": value(plan, self.seed_of_block)
        }

    monkeypatch.setattr(SerialTrainer, "begin", began)
    monkeypatch.setattr(SerialTrainer, "_score", replaced)


def noise(plan, seed):
    """Return a small number that is as good as drawn for each plan and seed."""
    return math.sin(7919 * (seed % 1009) + zlib.crc32(str(plan.to_json()).encode()) % 997) / 10


def everywhere(plan):
    return len(plan) > 1


def better(plan, seed):
    """A loss that dropout at both sites takes down, for certain."""
    return 2.0 - everywhere(plan) + noise(plan, seed)


def test_the_finalist_is_chosen_on_other_blocks_than_it_is_judged_on(url, monkeypatch):
    scored(monkeypatch, better)
    result = study(url, confirm_blocks=BLOCKS, epochs=1).optimize(progress=Notes())
    finalists = {f"finalist {i}" for i in (1, 2, 3)}
    found = by_block(url)
    assert found[1] == found[2] == {"no dropout", "as given"} | finalists
    chosen = result.verdict.details["selection"]["chosen"]
    for block in range(3, max(found) + 1):
        assert found[block] == {"no dropout", "as given", chosen}
    means = result.verdict.details["selection"]["means"]
    assert min(means, key=means.get) == chosen
    assert result.difference.n == max(found) - 2 < BLOCKS, "it stopped as soon as it was clear"
    assert (result.verdict.verdict, result.best["arm"]) == ("helps", chosen)
    loss = (
        "SELECT avg(json_extract(c.metrics, '$.val_loss')) FROM droptune_run r JOIN droptune_curve"
    )
    (judged,) = rows(url, loss + " c ON c.run_id = r.id WHERE r.block > 2 AND r.arm = ?", chosen)
    assert result.best["value"] == pytest.approx(judged[0]), "of the judged blocks alone"
    searched = json.loads(json.dumps(result.to_json()))["difference"]["search"]
    assert searched == pytest.approx(result.best["search_value"] - result.control["search_value"])


def test_the_design_is_stored_before_the_first_block_is_trained(url, monkeypatch):
    seen, start = [], Store.start_run

    def started(self, study_id, **run):
        if run["phase"] == "confirm":
            seen.append(len(self.designs(study_id)))
        return start(self, study_id, **run)

    monkeypatch.setattr(Store, "start_run", started)
    study(url, confirm_blocks=BLOCKS, level=0.9, margin=0.25, epochs=1).optimize(progress=Notes())
    assert set(seen) == {1}
    (design,) = designs(url)
    assert (design["level"], design["margin"], design["planned"]) == (0.9, 0.25, BLOCKS)
    assert (design["first_block"], design["selection"]) == (1, 2)
    assert (design["objective"], design["direction"]) == ("val_loss", "minimize")
    assert Plan.from_json(design["arms"]["no dropout"]["plan"]) == Plan.none()
    numbers = [arm["trial"] for arm in design["arms"].values()]
    assert len(numbers) == 5 and len(set(numbers)) == 5


def test_the_progress_shows_block_and_interval(url):
    notes = Notes()
    study(url, confirm_blocks=BLOCKS, epochs=1, margin=1e-9).optimize(progress=notes)
    said = list(dict.fromkeys(s.note for s in notes.statuses if s.phase == "confirm"))
    assert said[:3] == [
        "choosing among 4 plans, block 1 of 2",
        "choosing among 4 plans, block 2 of 2",
        "block 1 of at most 6",
    ]
    assert said[-1].startswith("block 6 of at most 6, interval now [")


class Stop(Exception):
    """The process ends here."""


@pytest.mark.parametrize("at", [3, 12, 17])
def test_an_interrupted_confirmation_goes_on_at_its_block_and_ends_the_same(
    tmp_path, monkeypatch, at
):
    answers, ended = [], []
    for interrupted in (False, True):
        folder = tmp_path / str(interrupted)
        folder.mkdir()
        url = fresh(folder)
        one = study(url, confirm_blocks=BLOCKS, epochs=1, margin=1e-9)
        if interrupted:
            left, start = [at], Store.start_run

            def counted(self, study_id, left=left, start=start, **run):
                left[0] -= run["phase"] == "confirm"
                if not left[0]:
                    raise Stop
                return start(self, study_id, **run)

            with monkeypatch.context() as patched, pytest.raises(Stop):
                patched.setattr(Store, "start_run", counted)
                one.optimize(progress=Notes())
        answers.append(one.optimize(progress=Notes()).to_json())
        complete = [run for run in runs(url, "confirm") if run[3] == "complete"]
        ended.append(sorted(complete, key=str))
    assert answers[0] == answers[1]
    assert ended[0] == ended[1], "nothing was trained twice"


def test_a_raised_budget_goes_on_with_the_plan_of_the_first(url):
    one = study(url, confirm_blocks=3, epochs=1, margin=1e-9, level=0.99999)
    first = one.optimize(progress=Notes())
    again = one.using(confirm_blocks=5).optimize(progress=Notes())
    assert len(designs(url)) == 1
    assert (first.difference.n, again.difference.n) == (3, 5)
    assert again.verdict.details["planned"] == 3


def test_a_budget_below_what_is_done_is_said_to_be_so(url):
    one = study(url, confirm_blocks=3, epochs=1, margin=1e-9, level=0.99999)
    one.optimize(progress=Notes())
    more = "3 blocks of confirmation; for more: raise --trials or --confirm-blocks"
    for changes, said in (
        ({}, f"6 of 6 trials, {more}"),
        ({"confirm_blocks": 2}, f"6 of 6 trials, {more} above 3"),
        ({"trials": 4}, f"6 trials, {more}"),
    ):
        notes = Notes()
        again = one.using(**changes).optimize(progress=notes)
        assert again.finished_before and again.difference.n == 3
        assert notes.messages[-1] == f"study 'mine' is finished: {said}"


@pytest.mark.parametrize("gain", [0.2, -0.2])
def test_who_cannot_wait_is_told_which_plan_is_ahead(url, monkeypatch, gain):
    scored(monkeypatch, lambda plan, seed: 2.0 - gain * (len(plan) > 0) * (1 + seed % 7))
    settings = {"trials": 3, "finalists": 1, "model": plain, "margin": 1e-9, "level": 0.99999}
    result = study(url, confirm_blocks=4, epochs=1, **settings).optimize(progress=Notes())
    assert result.verdict.verdict == "undecided"
    assert result.plan == Plan.none(), "it is not confirmed"
    ahead = result.verdict.details.get("ahead")
    assert (ahead is not None) == (result.difference.mean < 0) == (gain > 0)
    if ahead is not None:
        assert len(Plan.from_json(ahead["plan"])) > 0
        said = f"; if it must be settled now, finalist 1 (trial {ahead['trial']}) is ahead"
        assert str(result.verdict).endswith(said)
    assert ("is ahead" in str(result.verdict)) == (gain > 0)
    with Queries(url) as queries:
        stored = queries.study("mine")["verdict"]
    assert stored["text"] == str(result.verdict)


def test_other_finalists_are_a_new_confirmation_on_fresh_blocks(url):
    one = study(url, trials=4, confirm_blocks=BLOCKS, epochs=1, margin=1e-9)
    one.optimize(progress=Notes())
    before = by_block(url)
    result = one.optimize(trials=12, progress=Notes())
    first, second = designs(url)
    assert (first["earlier"], second["earlier"]) == (0, 1)
    assert second["first_block"] == max(before) + 1
    assert {block: arms for block, arms in by_block(url).items() if block in before} == before
    assert "confirmation 2" in str(result.verdict)
    assert one.optimize(trials=12, progress=Notes()).finished_before
    assert len(designs(url)) == 2


def test_a_plan_that_was_confirmed_stays_confirmed_and_is_a_candidate_again(url, monkeypatch):
    scored(monkeypatch, better)
    one = study(url, trials=5, confirm_blocks=BLOCKS, epochs=1)
    first = one.optimize(progress=Notes())
    assert first.verdict.verdict == "helps"
    scored(monkeypatch, lambda plan, seed: 2.0 + 5 * noise(plan, seed))
    again = one.optimize(trials=14, progress=Notes())
    assert len(designs(url)) == 2
    plans = [arm["plan"] for arm in designs(url)[1]["arms"].values()]
    assert first.plan.to_json() in plans
    assert (again.verdict.verdict, again.plan) == ("helps", first.plan)
    assert again.to_json() == first.to_json()


def test_a_candidate_that_fails_in_selection_is_not_chosen(url, monkeypatch):
    one = study(url, confirm_blocks=BLOCKS, epochs=1)
    one.using(confirm_blocks=0).optimize(progress=Notes())
    scored(
        monkeypatch, lambda plan, seed: math.nan if everywhere(plan) else 2.0 + noise(plan, seed)
    )
    result = one.optimize(progress=Notes())
    selection = result.verdict.details["selection"]
    failed = {name for name, mean in selection["means"].items() if mean is None}
    assert failed and selection["chosen"] not in failed
    assert result.verdict.verdict != "helps"


def test_a_constant_objective_is_said(url, monkeypatch):
    scored(monkeypatch, lambda plan, seed: 0.5)
    result = study(url, confirm_blocks=3, epochs=1).optimize(progress=Notes())
    assert "val_loss is 0.5 in every run" in str(result.verdict)
    assert result.plan == Plan.none()


def test_another_level_or_margin_waits_for_the_next_confirmation(url):
    study(url, confirm_blocks=3, epochs=1).optimize(progress=Notes())
    notes = Notes()
    study(url, confirm_blocks=3, epochs=1, level=0.99).optimize(progress=notes)
    assert "level 0.99 (now 0.95) holds from the next confirmation on" in notes.messages[0]
    assert designs(url)[0]["level"] == 0.95


def test_one_plan_alone_has_nothing_to_be_confirmed_against(url):
    one = study(url, model=plain, trials=1, epochs=1).optimize(progress=Notes())
    assert "there is nothing to compare; raise --trials" in str(one.verdict)
    assert runs(url, "confirm") == []


def test_blocks_of_an_older_droptune_choose_and_fresh_ones_judge(url):
    one = study(url, confirm_blocks=BLOCKS, epochs=1, margin=1e-9)
    one.optimize(progress=Notes())
    with Store(url) as store, store.transaction():
        # As the older one left it: no design, and all finalists in each block.
        connection = store._connection
        connection.exec_driver_sql("DELETE FROM droptune_confirmation")
        connection.exec_driver_sql("DELETE FROM droptune_run WHERE block > 2")
    before = runs(url, "confirm")
    result = one.optimize(progress=Notes())
    assert runs(url, "confirm")[: len(before)] == before
    (design,) = designs(url)
    assert (design["first_block"], design["selection"], design["earlier"]) == (1, 2, 0)
    assert result.difference.n == BLOCKS
    assert min(block for block, arms in by_block(url).items() if len(arms) == 3) == 3


# Several workers


def ahead(monkeypatch, blocks):
    """Let a worker train so many blocks more than the verdict asks for, as one of several may."""
    wanted = Confirmation.wanted

    monkeypatch.setattr(Confirmation, "wanted", lambda self, _: wanted(self, blocks))
    monkeypatch.setattr("droptune.optimize.merged", lambda found: merged(found)[::-1])  # last first


@pytest.mark.parametrize("blocks", [2, 5])
def test_blocks_trained_ahead_change_nothing(tmp_path, monkeypatch, blocks):
    scored(monkeypatch, better)
    (tmp_path / "alone").mkdir()
    alone, helped = fresh(tmp_path / "alone"), fresh(tmp_path)
    one = study(alone, confirm_blocks=BLOCKS, epochs=1).optimize(progress=Notes())
    ahead(monkeypatch, blocks)
    result = study(helped, confirm_blocks=BLOCKS, epochs=1).optimize(progress=Notes())
    assert str(result.verdict) == str(one.verdict)
    assert result.to_json()["difference"] == one.to_json()["difference"]
    assert len(by_block(helped)) > len(by_block(alone)), "else nothing was trained ahead"


def test_an_arm_that_another_worker_trains_is_waited_for(url, monkeypatch):
    one = study(url, confirm_blocks=2, finalists=1)
    one.using(confirm_blocks=0).optimize(progress=Notes())
    asleep = []

    def let_go(self):
        """The other worker, of another machine, gives no more sign of life."""
        asleep.append(True)
        with Store(url) as store:
            store.execute(text("UPDATE droptune_worker SET ended_at = started_at WHERE pid = 1"))

    with Store(url) as store:
        store.worker = Workers(store).register("cpu", 1)
        store.execute(text("UPDATE droptune_worker SET place = 'another' WHERE pid = 1"))
        plan = Plan.none().to_json()
        where = {"seed": 1, "block": 1, "clock": 0, "slot": 0, "trainer": "t", "device": "cpu"}
        store.start_run(1, phase="confirm", arm="no dropout", plan=plan, **where)
        with pytest.raises(NothingFree):
            one.optimize(progress=Notes(), wait=False)
        monkeypatch.setattr("droptune.watch.Idle.__call__", let_go)
        result = one.optimize(progress=Notes())
    assert asleep and result.difference.n == 2
    arms = [(block, arm) for _, arm, block, state, _ in runs(url, "confirm") if state == "complete"]
    assert len(arms) == len(set(arms)) == 6
    assert [state for *_, state, _ in runs(url, "confirm")].count("stale") == 1
