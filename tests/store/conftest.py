"""What the tests of the store share: URLs, a stored study, and a study with trials."""

from collections.abc import Callable
from types import SimpleNamespace

import optuna
import pytest

from droptune.store import Store, Workers

optuna.logging.set_verbosity(optuna.logging.WARNING)

SITES = [
    {"name": "0", "role": "hidden", "layout": "features", "reach": "output", "shape": [8]},
    {
        "name": "drop",
        "role": "head",
        "layout": "features",
        "reach": "module",
        "shape": [8],
        "kind": "standard",
        "rate": 0.5,
    },
]
RUN = {
    "phase": "search",
    "arm": "trial",
    "seed": 2**40,
    "block": 0,
    "clock": 3,
    "slot": 1,
    "trainer": "fused",
    "device": "cpu",
}


def plan(rate: float) -> dict:
    """Return a plan's JSON with one site."""
    site = {"kind": "standard", "rate": rate, "schedule": "constant"}
    return {"version": 1, "sites": {"0": site} if rate else {}}


def new_study(store: Store, name: str = "mine") -> int:
    """Store a small study."""
    definition = {"objective": "val_loss", "direction": "minimize", "epochs": 3}
    return store.create_study(name, definition, {"torch": "2"}, SITES)


@pytest.fixture
def examples() -> SimpleNamespace:
    """The makers above; test modules cannot import a conftest."""
    return SimpleNamespace(plan=plan, new_study=new_study, run=RUN)


@pytest.fixture
def url(tmp_path) -> str:
    """URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'droptune.db'}"


@pytest.fixture(scope="session")
def tuned() -> Callable[..., None]:
    """The maker of a study with trials."""
    return make_tuned


def make_tuned(url: str, name: str = "mine", direction: str = "minimize") -> None:
    """Make a study whose trials are told by Optuna itself: 0 best, 2 failed, 3 interrupted."""
    with Store(url) as store:
        study_id = new_study(store, name)
        storage = optuna.storages.RDBStorage(url)
        study = optuna.create_study(study_name=name, storage=storage, direction=direction)
        study.enqueue_trial({"rate": 0.0, "kind": "standard"})
        values = [0.25, 0.5, None, 0.4]
        for number, value in enumerate(values):
            trial = study.ask()
            rate = trial.suggest_float("rate", 0, 0.9)
            trial.suggest_categorical("kind", ["standard", "alpha"])
            run = {**RUN, "trial_number": number, "arm": "no dropout" if number == 0 else "trial"}
            if number == 3:
                store.start_run(study_id, plan=plan(rate), **run)
                Workers(store).reap(study_id)
            run_id = store.start_run(study_id, plan=plan(rate), **run)
            store.record([(run_id, epoch, 1.0, {"val_loss": 1 / epoch}) for epoch in (1, 2)])
            if value is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                store.end_run(run_id, "failed", seconds=1, epochs=2, message="diverged")
            else:
                study.tell(trial, value)
                store.end_run(run_id, "complete", seconds=1.5, epochs=2)
        trial = study.ask()  # number 4 is left running
        trial.suggest_float("rate", 0, 0.9)
        run_id = store.start_run(study_id, plan=plan(0.1), **{**RUN, "trial_number": 4})
        store.record([(run_id, 1, 1.0, {"val_loss": 0.3})])
        fixed = {"name": "half everywhere", "plan": plan(0.5)}
        study.enqueue_trial({"rate": 0.5, "kind": "alpha"}, user_attrs=fixed)
    storage.engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, url):
    """A store on each kind of database."""
    url = url if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    with Store(url) as store:
        yield store


@pytest.fixture
def study_id(store, examples):
    """A small study in it."""
    return examples.new_study(store)
