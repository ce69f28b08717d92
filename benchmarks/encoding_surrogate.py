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
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import GroupKFold, cross_val_predict

from droptune import Plan, Site, Space

BLOCKS, ANCHORS = 4, 32


def random_plans(spaces: Sequence[Space], count: int, seed: int) -> list[Plan]:
    """Return plans of the spaces by turns, from little dropout to much.

    Every space that a search is played in has its share: what a surrogate says of plans unlike
    those in its table is made up.
    """
    draw, plans = np.random.default_rng(seed), []
    for i in range(count):
        space = spaces[i % len(spaces)]
        probe = FixedTrial(space.encode(Plan.none()))
        space.suggest(probe)
        names = [name for name in probe.distributions if name.startswith("rate.")]
        scale, spread = draw.uniform(0, 1), draw.uniform(0.3, 3)
        params = {name: 0.0 for finer in space.finer.values() for name in finer}
        if "slope" in probe.distributions:
            params["slope"] = round(draw.uniform(-1, 1), 1)
        for name, part in zip(names, draw.beta(1, spread, len(names)), strict=True):
            params[name] = round(scale * part * probe.distributions[name].high, 2)
        plans.append(space.suggest(FixedTrial({"dropout": "on"} | params)))
    return plans


def make_table(task: str, count: int) -> dict:
    """Train random plans and return the table: plans, blocks, validation losses."""
    bench, one = Bench(task), study(task, "site")
    fixed = list(one.space.fixed_plans(one.as_given()).values())
    spaces = [study(task, encoding).space for encoding in ("site", "shape")]
    plans = fixed + random_plans(spaces, count, seed=0)
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

    A forest of extremely randomised trees (Geurts, Ernst, Wehenkel 2006,
    https://doi.org/10.1007/s10994-006-6226-1) on the rates of the sites, and their mean and root
    mean square by role; of the logarithm of the loss, less the mean of the block. No kernel: that
    would be near to what droptune's own search is made of.

    Attributes:
        noise: standard deviation of a single result around plan and block, of the logarithm:
            from the plans that were trained in every block.
        r2: variance of a single result explained in cross-validation, by plans.
        most: what can be explained of it, the noise being what it is.
    """

    def __init__(self, table: dict, sites: Sequence[Site]) -> None:
        self._sites = sites
        plans = [Plan.from_json(plan) for plan in table["plans"]]
        which, blocks = (np.array([row[i] for row in table["rows"]]) for i in (0, 1))
        y = np.log([row[2] for row in table["rows"]])
        anchors = np.array([y[which == i] for i in range(ANCHORS)])  # (ANCHORS, BLOCKS)
        offsets = anchors.mean(0) - anchors.mean()
        rest = anchors - anchors.mean(1, keepdims=True) - offsets
        y = y - offsets[blocks]
        self.noise = float(np.sqrt((rest**2).sum() / ((ANCHORS - 1) * (BLOCKS - 1))))
        self.most = float(1 - self.noise**2 / np.var(y))
        self.plans, x = plans, self._features([plans[i] for i in which])
        model = ExtraTreesRegressor(300, min_samples_leaf=3, random_state=0)
        guess = cross_val_predict(model, x, y, groups=which, cv=GroupKFold(5))
        self.r2 = float(1 - np.var(guess - y) / np.var(y))
        self._model = model.fit(x, y)

    def __call__(self, plans: Sequence[Plan]) -> np.ndarray:
        """Return the expected loss of plans, in nats."""
        return np.exp(self._model.predict(self._features(plans)))

    def _features(self, plans: Sequence[Plan]) -> np.ndarray:
        rates = np.array(
            [[plan[s.name].rate if s.name in plan else 0.0 for s in self._sites] for plan in plans]
        )
        columns = [rates]
        for role in dict.fromkeys(site.role for site in self._sites):
            own = rates[:, [site.role == role for site in self._sites]]
            columns.append(np.stack([own.mean(1), np.sqrt((own**2).mean(1))], axis=1))
        return np.hstack(columns)
