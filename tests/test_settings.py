"""Settings: what is allowed, and what is said of the rest."""

import pytest

from droptune.errors import DroptuneError, StudyError
from droptune.settings import rungs, seconds
from tests.small import Notes, cancer, mlp, study


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'd.db'}"


BAD = {
    "name": ["", "  ", None, 5],
    "model": [None, "mlp", mlp()],
    "data": [None, (1, 2), cancer],
    "train": ["loop", 3],
    "loss": ["crossentropy", 5, None],
    "epochs": [0, -1, 2.5, "3", True, None],
    "batch_size": [0, "64", None],
    "optimizer": ["adam", None],
    "lr": [-1, float("nan"), float("inf"), "fast", None],
    "weight_decay": [-0.1, None],
    "momentum": [float("nan"), "0.9"],
    "lr_schedule": ["linear", None],
    "objective": ["", None, 7, "val_acc", "test_loss", "train_loss"],
    "direction": ["min", 1],
    "encoding": ["sites", None, []],
    "tune": ["lr", [3], ["rate"], None],
    "warm_start": ["digits", [3], 5],
    "kinds": ["standard", ["nope"], 5, [3]],
    "rates": [{}, 0.3, ()],
    "sampler": ["TPE", None, ["tpe"]],
    "pruner": ["asha", None],
    "trials": [0, 1.5, "8", None],
    "time": [0, -1, "soon", "10 days", "", True, float("nan"), float("inf"), []],
    "confirm_blocks": [-1, 0.5],
    "finalists": [0, None],
    "level": [1, 0.05, 95, "0.95", None, True, float("nan")],
    "margin": [0, -0.1, "1 %", float("inf"), float("nan"), True],
    "seed": [-1, 0.5, None],
    "trainer": ["serial ", None, 5],
    "slots": [0, -2, "all", 1.5, None, True],
    "device": ["tpu9", "", None, 3, "cuda:99"],
    "store": [5, ["sqlite:///x.db"]],
}
CASES = [(what, value) for what, values in BAD.items() for value in values]


@pytest.mark.parametrize(("what", "value"), CASES, ids=[f"{w}={v!r:.20}" for w, v in CASES])
def test_a_bad_setting_is_one_line_that_names_it(url, tmp_path, what, value):
    with pytest.raises(DroptuneError) as caught:
        study(url, **{what: value}).optimize(progress=Notes())
    text = str(caught.value)
    assert "\n" not in text
    assert what.rstrip("s") in text
    given = value[0] if isinstance(value, list) and value else value
    assert value is None or str(given)[:5] in text or type(value).__name__ in text
    assert list(tmp_path.iterdir()) == [], "nothing was stored"


def test_a_pruner_without_a_rung_is_refused_before_anything_is_stored(url, tmp_path):
    with pytest.raises(StudyError, match="pruner 'median' compares.* epochs is 1; train for 2"):
        study(url, epochs=1, pruner="median")


def test_an_unknown_setting_is_named(url):
    with pytest.raises(StudyError, match="no_such"):
        study(url).using(no_such=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90s", 90),
        (" 1.5 m ", 90),
        ("2h", 7200),
        (0.5, 0.5),
        (1e-6, 1e-6),
        (None, None),
    ],
)
def test_a_time_is_seconds_or_a_text(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, set()), (2, {1}), (4, {1, 2}), (30, {4, 8, 15}), (8, {1, 2, 4})]
)
def test_rungs_are_an_eighth_a_quarter_and_a_half(epochs, expected):
    assert rungs(epochs, "median") == expected
    assert rungs(epochs, "none") == set()
