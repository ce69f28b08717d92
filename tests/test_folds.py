"""Groups, time, folds and copies: which rows a study may see when."""

import numpy as np
import pytest

from droptune.data import Data
from droptune.duplicates import copies
from droptune.errors import DataError, DroptuneError
from droptune.optimize import block_seed
from tests.small import Notes, fresh, mlp, rows, study

rng = np.random.default_rng(0)
N = 120
#: The only column is the row's number, so a split says which rows it has.
X = np.arange(N, dtype=float)[:, None]
Y = rng.integers(0, 3, N)
GROUPS = np.repeat(np.arange(30), 4)


def numbers(part) -> np.ndarray:
    return part.x[:, 0].numpy().astype(int)


def splits(data) -> list[np.ndarray]:
    return [numbers(p) for p in (data.train, data.val, data.test) if p is not None]


def whole(parts) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(N))


# Groups and time


@pytest.mark.parametrize("y", [Y, Y.astype(float)])
@pytest.mark.parametrize("seed", range(5))
def test_a_group_stays_in_one_split(y, seed):
    parts = splits(Data.split(X, y, groups=GROUPS, seed=seed))
    assert whole(parts)
    owners = [set(GROUPS[part]) for part in parts]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    assert all(15 <= len(part) <= 40 for part in parts[1:])


def test_a_class_that_is_in_few_groups_is_split_without_a_warning_or_refused_in_one_line():
    rare = np.where(GROUPS == 3, 1, 0)
    made = 0
    for seed in range(10):
        for make in (Data.split, Data.folds):
            try:
                make(X, rare, groups=GROUPS, seed=seed)
                made += 1
            except DataError as error:
                assert "labels that train has not: 1" in str(error)
    assert made
    few = np.arange(N) // 2 % 40  # every class has 2 to 4 rows
    with pytest.raises(DataError, match="take a smaller k|train has not"):
        Data.folds(X, few, k=9, groups=GROUPS, test=0)


def test_groups_may_be_names_and_depend_on_the_seed():
    names = np.array([f"patient {g}" for g in GROUPS])
    one, same, other = (Data.split(X, Y, groups=names, seed=s).digest() for s in (0, 0, 1))
    assert one == same != other


def test_time_puts_the_past_into_train():
    parts = splits(Data.split(X, Y, order="time"))
    assert whole(parts)
    assert parts[0].max() < parts[1].min() <= parts[1].max() < parts[2].min()


def test_time_may_be_given():
    times = rng.permutation(N)
    days = np.datetime64("2026-01-01") + times
    for order in (times, days):
        parts = splits(Data.split(X, Y, order=order, test=0))
        assert times[parts[0]].max() < times[parts[1]].min()


# Folds


@pytest.mark.parametrize("how", [{}, {"groups": GROUPS}, {"stratify": False}])
def test_every_row_outside_test_is_validated_on_once_and_test_stays_apart(how):
    data = Data.folds(X, Y, k=4, **how)
    assert data.blocks == 4
    parts = [splits(data.block(b)) for b in range(4)]
    assert all(whole(part) for part in parts)
    assert all((part[2] == parts[0][2]).all() for part in parts)
    assert whole([*(val for _, val, _ in parts), parts[0][2]])
    if "groups" in how:
        for train, val, test in parts:
            assert not set(GROUPS[val]) & (set(GROUPS[train]) | set(GROUPS[test]))


def test_block_b_validates_on_fold_b_mod_k():
    data = Data.folds(X, Y, k=3)
    digests = [data.block(b).digest() for b in range(6)]
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3
    assert (numbers(data.val) == numbers(data.block(0).val)).all()


def test_folds_have_the_same_share_of_each_class():
    labels = np.repeat([0, 1], [90, 30])
    data = Data.folds(X, labels, k=5, test=None)
    assert {int(data.block(b).val.y.sum()) for b in range(5)} == {6}


def test_folds_along_time_are_validated_after_their_training_rows():
    data = Data.folds(X, Y, k=4, order="time")
    held = numbers(data.test)
    sizes = []
    for b in range(4):
        train, val = splits(data.block(b))[:2]
        assert train.max() < val.min() <= val.max() < held.min()
        sizes.append(len(train))
    assert sizes == sorted(set(sizes))


def test_the_digest_of_folds_is_that_of_all_of_them():
    other = Data.folds(X, Y, k=3, seed=1).digest()
    assert Data.folds(X, Y, k=3).digest() == Data.folds(X, Y, k=3).digest() != other
    assert Data.folds(X, Y, k=3).digest() != Data.folds(X, Y, k=3).block(0).digest()


def test_later_changes_of_the_arrays_change_no_fold():
    x, y = X.copy(), Y.copy()
    data = Data.folds(x, y, k=3)
    before = data.block(2).digest()
    x += 1
    y[:] = 0
    assert data.block(2).digest() == before


# Bad input


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        ("split", {"groups": np.zeros(N)}, "groups has 1 group .* a group stays in one"),
        ("split", {"groups": GROUPS[:5]}, r"groups has shape \(5,\)"),
        ("split", {"order": "date"}, "order 'date': give \"time\""),
        ("split", {"order": np.full(N, np.nan)}, "none missing"),
        ("split", {"order": np.array(["x"] * N)}, "give numbers or dates"),
        ("split", {"order": "time", "stratify": True}, "leave one out"),
        ("split", {"order": "time", "groups": GROUPS}, "leave one out"),
        ("split", {"y": np.zeros(N, int)}, "y has one class, 0"),
        ("folds", {"y": np.zeros(N, int)}, "y has one class, 0"),
        ("folds", {"k": 1}, "k 1: a whole number of folds from 2"),
        ("folds", {"k": 2.0}, "k 2.0"),
        ("folds", {"k": N + 1, "stratify": False}, r"k=121 folds of 96 rows"),
        ("folds", {"k": 200, "order": "time"}, r"k=200 folds of 96 rows"),
        ("folds", {"k": 31, "groups": GROUPS}, r"k=31 folds of \d+ groups; take a k of at most"),
        ("folds", {"groups": np.zeros(N)}, "groups has 1 group"),
        ("folds", {"groups": np.zeros(N), "test": 0}, "k=5 folds of 1 groups"),
        ("folds", {"y": np.array([1] * 3 + [0] * (N - 3)), "test": 0}, "class 1 has 3 rows, too"),
        ("folds", {"test": 1.0}, "test=1.0 of 120 rows"),
        ("folds", {"y": Y[:9]}, "must be the same rows"),
    ],
)
def test_rows_that_cannot_be_split_so_are_refused_in_one_line(make, arguments, match):
    with pytest.raises(DataError, match=match) as caught:
        getattr(Data, make)(**({"X": X, "y": Y} | arguments))
    assert "\n" not in str(caught.value)


# Copies


def test_copies_across_splits_are_counted():
    train, val, test = np.zeros((4, 2)), np.ones((3, 2)), np.full((2, 2), 2.0)
    assert copies({"train": train, "val": val, "test": test}) == {}
    val[0] = -0.0  # equals 0.0
    test[:] = [[1, 1], [0, 0]]
    found = copies({"train": train, "val": val, "test": test})
    expected = {("val", "train"): (1, 3), ("test", "train"): (1, 2), ("test", "val"): (2, 2)}
    assert found == expected


def test_planted_copies_are_told_once_at_the_start_of_optimize(tmp_path):
    url, notes = fresh(tmp_path), Notes()
    given = study(url).data
    clean = Notes()
    study(url, name="clean", trials=1, confirm_blocks=0).optimize(progress=clean)
    assert not [line for line in clean.messages if "leakage" in line]
    x, y = given.val.x.clone(), given.val.y
    x[:5] = given.train.x[:5]
    data = Data(train=(given.train.x, given.train.y), val=(x, y))
    study(url, data=data, trials=1, confirm_blocks=0).optimize(progress=notes)
    (line,) = [line for line in notes.messages if "leakage" in line]
    assert notes.messages[0] == line
    assert f"5 of {len(y)} rows of val are exact copies of rows of train" in line


def test_a_split_with_a_single_class_is_told():
    data = Data(train=(X, Y), val=(X[:5], Y[:5] * 0))
    assert [line for line in data.remarks() if "val has rows of class 0 alone" in line]
    floats = Data(train=(X, Y / 3), val=(X[:5] + 0.5, Y[:5] * 0.0))
    assert floats.remarks() == []


# In a study


def folded():
    x = rng.normal(size=(90, 30))
    return Data.folds(x, np.arange(90) % 2, k=3, test=0.2)


@pytest.mark.parametrize("trainer", ["serial", "fused"])
def test_every_block_trains_and_validates_on_its_fold(tmp_path, trainer):
    url, data = fresh(tmp_path), folded()
    settings = {"trials": 3, "confirm_blocks": 4, "epochs": 2, "trainer": trainer, "slots": 2}
    settings |= {"level": 0.9999, "margin": 1e-9}  # so that no verdict ends the blocks early
    study(url, data=data, **settings).optimize(progress=Notes())
    sql = "SELECT block, seed, c.metrics FROM droptune_run r JOIN droptune_curve c ON c.run_id=r.id"
    sql += " WHERE arm = 'no dropout' AND epoch = 2 ORDER BY block"
    found = rows(url, sql)
    assert [block for block, _, _ in found] == [0, 1, 2, 3, 4]
    for block, seed, metrics in found:
        assert seed == block_seed(0, block)
        assert metrics == alone(tmp_path / str(block), data.block(block), block, settings)


def alone(folder, data, block, settings):
    """Return the metrics of no dropout trained on one fold alone, with the seed of a block."""
    folder.mkdir()
    url = fresh(folder)
    study(url, data=data, **settings).optimize(progress=Notes())
    sql = "SELECT c.metrics FROM droptune_run r JOIN droptune_curve c ON c.run_id=r.id"
    sql += " WHERE arm = 'no dropout' AND epoch = 2 AND block = ?"
    return rows(url, sql, block)[0][0]


def test_a_verdict_over_folds_says_that_they_share_rows(tmp_path):
    url = fresh(tmp_path)
    text = str(study(url, data=folded(), trials=3).optimize(progress=Notes()).verdict)
    assert "3 folds share training rows" in text
    stored = rows(url, "SELECT text FROM droptune_verdict")
    assert stored == [(text,)]
    plain = str(study(url, name="plain", trials=3).optimize(progress=Notes()).verdict)
    assert "folds" not in plain


def test_a_study_over_folds_goes_on_and_other_folds_are_another_study(tmp_path):
    url, x = fresh(tmp_path), rng.normal(size=(90, 30))
    made = {k: Data.folds(x, np.arange(90) % 2, k=k) for k in (3, 4)}
    study(url, data=made[3], trials=2).optimize(progress=Notes())
    again = study(url, data=made[3], trials=2).optimize(progress=Notes())
    assert again.finished_before
    with pytest.raises(DroptuneError, match="another data"):
        study(url, data=made[4], trials=2, model=mlp).optimize(progress=Notes())


def test_copies_between_any_two_folds_are_named():
    x = np.arange(12, dtype=float)[:, None]
    late = Data.folds(x, np.arange(12.0), k=3, test=None, seed=1)
    assert late.remarks() == []
    one, other = (numbers(late.block(number).val)[0] for number in (1, 2))
    x[one] = x[other]  # both are in the training rows of the first fold
    (said,) = Data.folds(x, np.arange(12.0), k=3, test=None, seed=1).remarks()
    assert said.startswith("fold 1: leakage: 1 of 4 rows of val")
