"""A space and a model so small that a search over them takes no time."""

import contextlib
from typing import ClassVar

import numpy as np
import optuna

from droptune.plan import Entry, Plan
from droptune.sites import Site


class TinySpace:
    """Two rates and a kind: what a space must be able to do, and no more."""

    settled: ClassVar[dict] = {}
    finer: ClassVar[dict] = {}
    spelled = ("front", "back")
    sites = tuple(Site(name, name, "output", "hidden", "NF", int(name), (9,)) for name in "02")

    def __init__(self, high=0.6, kinds=("standard", "gaussian")):
        self.high, self.kinds = high, list(kinds)

    def suggest(self, trial):
        front = trial.suggest_float("front", 0.0, self.high, step=0.01)
        back = trial.suggest_float("back", 0.0, self.high)
        kind = trial.suggest_categorical("kind", self.kinds)
        return Plan({"0": Entry(kind, front), "2": Entry(kind, back)})

    def rates_of(self, columns):
        return np.array([columns["front"], columns["back"]]).T

    def given(self, number):
        return {}

    def encode(self, plan):
        rates = [min(plan[site].rate, self.high) if site in plan else 0.0 for site in "02"]
        kinds = [entry.kind for entry in plan.values() if entry.kind in self.kinds]
        return {
            "front": round(rates[0], 2),
            "back": rates[1],
            "kind": kinds[0] if kinds else self.kinds[0],
        }


def rate(plan, site):
    return plan[site].rate if site in plan else 0.0


def loss(plan):
    """Smallest at front 0.2, back 0.4."""
    return 1 + (rate(plan, "0") - 0.2) ** 2 + (rate(plan, "2") - 0.4) ** 2


def train(search, asked):
    """Train a made-up model: report at each epoch, and tell."""
    for epoch in range(1, 10):
        if search.report(asked.number, epoch, loss(asked.plan) + 1 / epoch):
            search.tell(asked.number, state="pruned")
            return
    search.tell(asked.number, loss(asked.plan))


def run(search, trials):
    """Train until `trials` are finished or nothing is left; return what was asked."""
    seen = []
    while search.finished < trials and (asked := search.ask()) is not None:
        seen.append(asked)
        train(search, asked)
    return seen


@contextlib.contextmanager
def storage(url):
    """Open a store as Optuna opens it, and close its connections."""
    opened = optuna.storages.RDBStorage(url)
    try:
        yield opened
    finally:
        opened.remove_session()
        opened.engine.dispose()


def stored(url, name="s"):
    """Read the trials as Optuna reads them, with nothing of droptune."""
    with storage(url) as opened:
        return optuna.load_study(study_name=name, storage=opened).trials
