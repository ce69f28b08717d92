"""A stored study with figures that are made up, for what shows studies."""

import math

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from droptune.store import Store

EVIL = "</script><img src=x onerror=alert(1)>\x1b[31m<b>%{x}$1 & \"quoted\" 'name'"
SITES = [
    {"name": name, "role": role, "layout": "NF", "reach": "output", "shape": [8]}
    for name, role in (("@input", "input"), ("1", "hidden"), ("3<b>", "head"))
]
DEFINITION = {
    "objective": "val_loss",
    "direction": "minimize",
    "training": {"loss": "cross_entropy", "train": None},
}
RUN = {"seed": 1, "clock": 0, "slot": 0, "trainer": "fused", "device": "cpu"}
SPACE = {
    "dropout": CategoricalDistribution(["on", "off"]),
    "rate.hidden": FloatDistribution(0.0, 0.6, step=0.01),
    "rate.head": FloatDistribution(0.0, 0.6, step=0.01),
}
BINS = [[0.5, 0.25, 4], [0.9, 0.75, 4]]


def plan(hidden: float, head: float = 0.0) -> dict:
    """Return a plan's JSON: no dropout where a rate is 0."""
    rates = {"1": hidden, "3<b>": head}
    sites = {s: {"kind": "standard", "rate": r, "schedule": "constant"} for s, r in rates.items()}
    return {"version": 1, "sites": {s: e for s, e in sites.items() if e["rate"]}}


def value(hidden: float, head: float, block: int = 0) -> float:
    """Return the loss at the end of a run: 0.2 behind the hidden layer is best."""
    return 1 + (hidden - 0.2) ** 2 + 0.01 * head + 0.001 * ((7 * block) % 5)


def curve(run: int, final: float, epochs: int, bins: list | None = None) -> list[tuple]:
    """Return the rows of a curve that falls to `final`."""
    rows = [(run, e, 2.0 / e, {"val_loss": final + 1 / e - 1 / epochs}) for e in range(1, epochs)]
    last = {"val_loss": final} | ({"reliability": bins} if bins else {})
    return [*rows, (run, epochs, 2.0 / epochs, last)]


def begin(store: Store, name: str) -> tuple[int, optuna.Study]:
    """Store a study without trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study_id = store.create_study(name, DEFINITION, {"torch": "2"}, SITES)
    storage = optuna.storages.RDBStorage(store.url)
    return study_id, optuna.create_study(study_name=name, storage=storage, direction="minimize")


def add_trial(store: Store, study_id: int, study: optuna.Study, rates: tuple, **more) -> None:
    """Store a trial of (hidden, head) and its run: `name`, `epochs`, `bad` (failed, NaN)."""
    name, bad, epochs = more.get("name"), more.get("bad", False), more.get("epochs", 3)
    number, final = len(study.get_trials(deepcopy=False)), value(*rates)
    params = {
        "dropout": "on" if any(rates) else "off",
        "rate.hidden": rates[0],
        "rate.head": rates[1],
    }
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if bad else TrialState.COMPLETE,
            value=None if bad else final,
            params=params,
            distributions=SPACE,
            user_attrs={"name": name, "plan": plan(*rates)} if name else {},
        )
    )
    run = store.start_run(
        study_id,
        phase="search",
        arm=name or "trial",
        plan=plan(*rates),
        block=0,
        trial_number=number,
        **RUN,
    )
    rows = curve(run, math.nan if bad else final, epochs)
    store.record(rows)
    message = f"diverged {EVIL}" if bad else None
    store.end_run(run, "failed" if bad else "complete", seconds=1.5, epochs=epochs, message=message)


def add_block(store: Store, study_id: int, block: int, arms: dict, epochs: int = 3) -> None:
    """Store the confirmation runs of a block: arm -> (hidden, head)."""
    for arm, rates in arms.items():
        run = store.start_run(
            study_id, phase="confirm", arm=arm, plan=plan(*rates), block=block, **RUN
        )
        store.record(curve(run, value(*rates, block), epochs, BINS))
        test = {"test_loss": value(*rates, block) + 0.1}
        store.end_run(run, "complete", seconds=1.5, epochs=epochs, test=test)


ARMS = {"no dropout": (0.0, 0.0), "finalist 1": (0.2, 0.0), "finalist 2": (0.25, 0.0)}


def whole(url: str, name: str = "mine", trials: int = 24, blocks: int = 4) -> None:
    """Store a study with trials, one of which failed, a confirmation and a verdict."""
    with Store(url) as store:
        study_id, study = begin(store, name)
        add_trial(store, study_id, study, (0.0, 0.0), name="no dropout")
        add_trial(store, study_id, study, (0.1, 0.1), name="0.1 everywhere")
        add_trial(store, study_id, study, (0.6, 0.6), bad=True)
        for i in range(trials - 3):
            add_trial(store, study_id, study, (round(0.02 * i, 2), round(0.6 * (i % 7) / 7, 2)))
        for block in range(1, blocks + 1):
            add_block(store, study_id, block, ARMS)
        store.save_verdict(study_id, verdict(blocks))
        study._storage._backend.engine.dispose()


def verdict(blocks: int) -> dict:
    """Return the row of a verdict that fits the runs of `whole`."""
    means = {
        arm: sum(value(*rates, b) for b in range(1, blocks + 1)) / blocks
        for arm, rates in ARMS.items()
    }
    difference = means["finalist 1"] - means["no dropout"]
    return {
        "verdict": "helps",
        "text": f"helps: {difference:.3f} nats, {blocks} paired seeds",
        "plan": plan(0.2),
        "objective": "val_loss",
        "direction": "minimize",
        "difference": difference,
        "low": difference - 0.001,
        "high": difference + 0.001,
        "p_value": 0.001,
        "blocks": blocks,
        "level": 0.95,
        "best": {
            "arm": "finalist 1",
            "value": means["finalist 1"],
            "trial": 13,
            "search_value": 0.99,
        },
        "control": {
            "arm": "no dropout",
            "value": means["no dropout"],
            "trial": 0,
            "search_value": 1.04,
        },
        "test": {"test_loss": {"best": 1.1, "control": 1.14}},
        "details": {"finalists": {"finalist 1": {"mean": difference}}, "as given": None},
    }
