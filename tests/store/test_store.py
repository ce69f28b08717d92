"""The contract of a store, run for each kind of database that there is here."""

import json
import pickle

import pytest
from sqlalchemy import text

from droptune.errors import StoreError, StudyError
from droptune.store import Queries, Store, Workers


class StoreContract:
    """What every store promises; a subclass gives the fixture `url` of an empty database."""

    @pytest.fixture
    def store(self, url):
        with Store(url) as store:
            yield store

    @pytest.fixture
    def study_id(self, store, examples):
        return examples.new_study(store)

    def start(self, store, study_id, examples, **changes):
        return store.start_run(study_id, **{"plan": examples.plan(0.1), **examples.run, **changes})

    def confirm(self, store, study_id, examples, **changes):
        return self.start(store, study_id, examples, phase="confirm", **changes)

    def all_of(self, store, table):
        with store.engine.connect() as connection:
            rows = connection.execute(text(f"SELECT * FROM droptune_{table} ORDER BY 1, 2"))
            return [dict(row._mapping) for row in rows]

    def test_a_study_comes_back_as_stored(self, store, study_id, url):
        with Store(url, create=False) as again:
            study = again.study("mine")
        assert study["id"] == study_id
        assert study["definition"] == {
            "objective": "val_loss",
            "direction": "minimize",
            "epochs": 3,
        }
        assert study["environment"] == {"torch": "2"}

    def test_an_unknown_study_is_none(self, store):
        assert store.study("mine") is None

    def test_sites_keep_their_order_and_what_is_there_today(self, store, study_id):
        rows = sorted(self.all_of(store, "site"), key=lambda row: row["position"])
        assert [(row["position"], row["name"], row["rate"]) for row in rows] == [
            (0, "0", None),
            (1, "drop", 0.5),
        ]

    def test_two_studies_of_one_name_are_an_error_and_change_nothing(self, store, examples):
        examples.new_study(store)
        with pytest.raises(StudyError, match="study 'mine' is already in"):
            examples.new_study(store)
        assert len(self.all_of(store, "study")) == 1
        assert len(self.all_of(store, "site")) == 2

    def test_a_study_without_sites_can_be_stored(self, store):
        assert store.create_study("bare", {}, {}, []) > 0

    def test_curves_of_some_trials_are_of_those_alone(self, store, study_id, examples):
        for number, state in enumerate(("complete", "pruned", "complete", "failed")):
            run = store.start_run(study_id, plan={}, **examples.run, trial_number=number)
            store.record([(run, epoch, 0.5, {"m": number + epoch}) for epoch in (1, 2)])
            store.end_run(run, state, seconds=1, epochs=2)
        assert store.search_curves(study_id, "m") == {0: [1, 2], 1: [2, 3], 2: [3, 4]}
        assert store.search_curves(study_id, "m", [2, 0]) == {0: [1, 2], 2: [3, 4]}
        assert store.search_curves(study_id, "m", []) == {}

    def test_a_run_starts_running_and_ends_as_told(self, store, study_id, examples):
        run_id = self.start(store, study_id, examples, trial_number=7)
        (row,) = self.all_of(store, "run")
        assert (row["state"], row["trial_number"], row["clock"]) == ("running", 7, 3)
        assert row["seed"] == 2**40
        store.end_run(run_id, "failed", seconds=1.5, epochs=2, message="diverged")
        (row,) = self.all_of(store, "run")
        assert (row["state"], row["seconds"], row["epochs"]) == ("failed", 1.5, 2)
        assert row["message"] == "diverged"

    def test_a_state_or_phase_that_is_none_is_refused(self, store, study_id, examples):
        run_id = self.start(store, study_id, examples)
        with pytest.raises(StoreError):
            store.end_run(run_id, "done", seconds=1, epochs=1)
        with pytest.raises(StoreError):
            self.start(store, study_id, examples, phase="test")
        assert [row["state"] for row in self.all_of(store, "run")] == ["running"]

    def test_a_run_of_no_study_is_refused(self, store, examples):
        with pytest.raises(StoreError):
            self.start(store, 99, examples)

    def test_a_curve_row_of_no_run_is_refused(self, store):
        with pytest.raises(StoreError):
            store.record([(99, 1, 0.5, {})])

    def test_recording_nothing_is_allowed(self, store):
        store.record([])
        store.record(iter(()))

    def test_an_epoch_recorded_again_replaces_the_old_row(self, store, study_id, examples):
        run_id = self.start(store, study_id, examples)
        store.record([(run_id, 1, 0.5, {"val_loss": 0.5}), (run_id, 2, 0.4, {"val_loss": 0.4})])
        store.record([(run_id, 2, 0.3, {"val_loss": 0.3})])
        curve = sorted((row["epoch"], row["train_loss"]) for row in self.all_of(store, "curve"))
        assert curve == [(1, 0.5), (2, 0.3)]

    def test_nan_and_infinity_become_null(self, store, study_id, examples):
        nan, inf = float("nan"), float("inf")
        run_id = self.confirm(store, study_id, examples)
        store.record([(run_id, 1, nan, {"val_loss": -inf, "per_class": [1.0, nan]})])
        store.end_run(run_id, "failed", seconds=nan, epochs=1, test={"test_loss": inf})
        (run,) = store.confirm_runs(study_id)
        assert run["metrics"] == {"val_loss": None, "per_class": [1.0, None]}
        assert run["test"] == {"test_loss": None}
        assert run["seconds"] is None
        assert self.all_of(store, "curve")[0]["train_loss"] is None

    def test_a_transaction_that_raises_leaves_nothing(self, store, study_id, examples):
        with pytest.raises(KeyError), store.transaction():
            run_id = self.start(store, study_id, examples)
            store.record([(run_id, 1, 0.5, {})])
            raise KeyError
        assert self.all_of(store, "run") == self.all_of(store, "curve") == []

    def test_a_transaction_inside_another_joins_it(self, store, study_id, examples):
        with pytest.raises(KeyError), store.transaction():
            with store.transaction():
                self.start(store, study_id, examples)
            raise KeyError
        assert self.all_of(store, "run") == []

    def test_a_transaction_is_seen_by_others_only_when_it_ends(self, store, url, examples):
        with Store(url) as other:
            with store.transaction():
                examples.new_study(store)
                assert store.study("mine") is not None
                assert other.study("mine") is None
            assert other.study("mine") is not None

    def test_a_store_goes_on_after_a_transaction_failed(self, store, study_id, examples):
        with pytest.raises(StoreError):
            store.record([(99, 1, 0.5, {})])
        self.start(store, study_id, examples)
        assert len(self.all_of(store, "run")) == 1

    def test_runs_of_a_dead_process_become_stale(self, store, study_id, examples):
        other = examples.new_study(store, "other")
        done = self.start(store, study_id, examples)
        store.end_run(done, "complete", seconds=1, epochs=1)
        self.start(store, study_id, examples)
        self.start(store, other, examples)
        assert Workers(store).reap(study_id) == 1
        assert Workers(store).reap(study_id) == 0
        states = [row["state"] for row in self.all_of(store, "run")]
        assert states == ["complete", "stale", "running"]

    def test_confirm_runs_are_the_finished_ones_with_their_last_metrics(
        self, store, study_id, examples
    ):
        for block, arm in [(2, "no dropout"), (1, "finalist 1"), (1, "no dropout")]:
            run_id = self.confirm(store, study_id, examples, arm=arm, block=block)
            store.record([(run_id, epoch, 1.0, {"val_loss": epoch}) for epoch in (1, 3, 2)])
            store.end_run(run_id, "complete", seconds=1, epochs=3, test={"test_loss": 0.5})
        self.confirm(store, study_id, examples, arm="as given", block=1)  # still running
        search = self.start(store, study_id, examples)
        store.end_run(search, "complete", seconds=1, epochs=3)
        runs = store.confirm_runs(study_id)
        assert [(run["block"], run["arm"]) for run in runs] == [
            (1, "finalist 1"),
            (1, "no dropout"),
            (2, "no dropout"),
        ]
        assert runs[0]["metrics"] == {"val_loss": 3}
        assert runs[0]["test"] == {"test_loss": 0.5}
        assert runs[0]["plan"] == examples.plan(0.1)

    def test_the_latest_verdict_counts(self, store, study_id, examples):
        assert store.verdict(study_id, "val_loss") is None
        words = {"text": "helps: ...", "objective": "val_loss", "direction": "minimize"}
        verdict = {**words, "plan": examples.plan(0.2), "blocks": 8, "details": {"arms": [1, 2]}}
        store.save_verdict(study_id, {**verdict, "verdict": "undecided", "low": float("nan")})
        store.save_verdict(study_id, {**verdict, "verdict": "helps", "difference": -0.5})
        store.save_verdict(study_id, {**verdict, "verdict": "hurts", "objective": "val_f1"})
        latest = store.verdict(study_id, "val_loss")
        assert (latest["verdict"], latest["difference"], latest["low"]) == ("helps", -0.5, None)
        assert latest["plan"] == examples.plan(0.2)
        assert latest["details"] == {"arms": [1, 2]}
        assert store.verdict(study_id, "val_f1")["verdict"] == "hurts"

    def test_designs_come_back_in_the_order_of_their_rounds(self, store, study_id, url):
        assert store.designs(study_id) == []
        for first in (1, 11):
            store.save_design(study_id, {"first_block": first, "margin": None})
        assert [one["first_block"] for one in store.designs(study_id)] == [1, 11]
        with Queries(url) as queries:
            assert queries.designs("mine") == store.designs(study_id)
        rounds = [row["round"] for row in self.all_of(store, "confirmation")]
        assert rounds == [1, 2]

    def test_two_stores_write_in_turns(self, store, study_id, url, examples):
        with Store(url) as other:
            for writer in (store, other, store):
                self.start(writer, study_id, examples)
        assert len(self.all_of(store, "run")) == 3

    def test_a_closed_store_may_be_closed_again(self, store):
        store.close()
        store.close()

    def test_nothing_that_is_stored_is_a_pickle(self, store, study_id, examples):
        run_id = self.confirm(store, study_id, examples)
        store.record([(run_id, 1, 0.5, {"val_loss": 0.5})])
        for table in ("study", "site", "run", "curve"):
            for value in self.all_of(store, table)[0].values():
                assert not isinstance(value, bytes)

    def test_what_is_not_json_cannot_be_stored(self, store):
        class Exploit:
            def __reduce__(self):
                return print, ("executed",)

        assert pickle.dumps(Exploit())
        with pytest.raises(Exception, match="not JSON serializable"):
            store.create_study("mine", {"model": Exploit()}, {}, [])
        assert store.study("mine") is None


class TestSQLite(StoreContract):
    """A SQLite file; the URL is the fixture of conftest."""

    def test_json_is_readable_text_for_every_other_tool(self, store, study_id):
        (row,) = self.all_of(store, "study")
        assert json.loads(row["definition"])["epochs"] == 3

    def test_a_store_in_memory_works_within_one_process(self, examples):
        with Store("sqlite://") as store:
            examples.new_study(store)
            assert store.study("mine")["name"] == "mine"
            assert [row["name"] for row in store.queries().studies()] == ["mine"]

    def test_text_that_is_not_json_is_an_error_of_one_line(self, store, study_id):
        with store.engine.begin() as connection:
            connection.execute(text("UPDATE droptune_study SET definition = 'cos(0)'"))
        with pytest.raises(StoreError, match="cannot be used: Expecting value"):
            store.study("mine")
        with pytest.raises(StoreError, match="not JSON"):
            store.queries().studies()


class TestPostgreSQL(StoreContract):
    """A database of its own on a real server."""

    @pytest.fixture
    def url(self, postgres):
        return postgres.database()
