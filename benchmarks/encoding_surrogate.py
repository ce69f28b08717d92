"""A table of trained plans of a task, and the regressor that stands in for training them.

The table holds random plans, each trained in one of a few blocks, and some in all of them:
these give the noise, that part of a result which is neither the plan's nor the block's.
"""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
from encoding_tasks import TASKS, Bench, study
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial
from scipy.spatial.distance import pdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import cross_val_predict

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
