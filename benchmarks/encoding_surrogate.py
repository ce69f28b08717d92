"""A table of trained plans of a task, and the regressor that stands in for training them.

The table holds random plans, each trained in one of a few blocks, and some in all of them:
these give the noise, that part of a result which is neither the plan's nor the block's.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from encoding_tasks import Bench, study
from optuna.trial import FixedTrial
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict

from droptune import Plan, Space

BLOCKS, ANCHORS = 4, 32


def random_plans(space: Space, count: int, seed: int) -> list[Plan]:
    """Return plans whose rates are drawn site by site, from little dropout to much."""
    draw, plans = np.random.default_rng(seed), []
    probe = FixedTrial(space.encode(Plan.none()))
    space.suggest(probe)
    highest = {name: d.high for name, d in probe.distributions.items() if name.startswith("rate.")}
    for _ in range(count):
        scale, tilt = draw.uniform(0, 1), draw.uniform(-1, 1)
        depth = 1 + tilt * np.linspace(-1, 1, len(highest))
        rates = scale * depth * draw.beta(1, draw.uniform(0.3, 3), len(highest))
        params = {
            name: round(float(min(rate, 1.0)) * high, 2)
            for rate, (name, high) in zip(rates, highest.items(), strict=True)
        }
        plans.append(space.suggest(FixedTrial({"dropout": "on"} | params)))
    return plans


def make_table(task: str, count: int) -> dict:
    """Train random plans and return the table: plans, blocks, validation losses."""
    bench, one = Bench(task), study(task, "site")
    fixed = list(one.space.fixed_plans(one.as_given()).values())
    plans = fixed + random_plans(one.space, count, seed=0)
    rows = [(i, block) for i in range(ANCHORS) for block in range(BLOCKS)]
    rows += [(i, i % BLOCKS) for i in range(ANCHORS, len(plans))]
    values = {}
    for block in range(BLOCKS):
        mine = [i for i, b in rows if b == block]
        losses = bench.train([plans[i] for i in mine], 1000 + block)
        values |= {(i, block): loss for i, loss in zip(mine, losses, strict=True)}
    return {
        "plans": [plan.to_json() for plan in plans],
        "rows": [[i, block, values[i, block]] for i, block in rows],
    }


def table(task: str, count: int, cache: Path) -> dict:
    """Return the table of a task, from the cache if it is there."""
    path = cache / f"table-{task}-{count}.json"
    if not path.exists():
        path.write_text(json.dumps(make_table(task, count)))
    return json.loads(path.read_text())


class Surrogate:
    """Predicts the expected validation loss of plans, from a table.

    A Gaussian process on the rates of the sites and the logarithm of the loss, less the mean
    of the block; each site has its own length where there are few.

    Attributes:
        noise: standard deviation of a single result around plan and block, of the logarithm:
            from the plans that were trained in every block.
        r2: variance explained in cross-validation, of a single result.
    """

    def __init__(self, table: dict, sites: Sequence[str]) -> None:
        self._sites = sites
        plans = [Plan.from_json(plan) for plan in table["plans"]]
        which, blocks = (np.array([row[i] for row in table["rows"]]) for i in (0, 1))
        y = np.log([row[2] for row in table["rows"]])
        anchors = np.array([y[which == i] for i in range(ANCHORS)])  # (ANCHORS, BLOCKS)
        self._offsets = anchors.mean(0) - anchors.mean()
        y = y - self._offsets[blocks]
        rest = anchors - anchors.mean(1, keepdims=True) - self._offsets
        self.noise = float(np.sqrt((rest**2).sum() / ((ANCHORS - 1) * (BLOCKS - 1))))
        self.plans, x = plans, self._rates([plans[i] for i in which])
        self._mean = y.mean()
        lengths = np.ones(len(sites)) if len(sites) <= 10 else 1.0
        kernel = ConstantKernel() * RBF(lengths, (0.05, 20)) + WhiteKernel(self.noise**2)
        few = np.random.default_rng(0).permutation(len(y))[:400]
        first = GaussianProcessRegressor(kernel, random_state=0).fit(x[few], y[few] - self._mean)
        model = GaussianProcessRegressor(first.kernel_, optimizer=None)
        folds = KFold(5, shuffle=True, random_state=0)
        guess = cross_val_predict(model, x, y - self._mean, cv=folds)
        self.r2 = float(1 - np.var(guess - y + self._mean) / np.var(y))
        self._model = model.fit(x, y - self._mean)

    def __call__(self, plans: Sequence[Plan]) -> np.ndarray:
        """Return the expected loss of plans, in nats or squares."""
        return np.exp(self._model.predict(self._rates(plans)) + self._mean)

    def _rates(self, plans: Sequence[Plan]) -> np.ndarray:
        return np.array(
            [[plan[s].rate if s in plan else 0.0 for s in self._sites] for plan in plans]
        )
