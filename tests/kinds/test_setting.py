"""droptune/kinds/setting.py: what a setting may be, and settings as values."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from droptune.errors import PlanError
from droptune.kinds.setting import Setting, Settings, checked

KNOWN = {"size": Setting(0.25, 0.05, 0.5, 0.05), "repeat": Setting(4, 1, 8, 1, whole=True)}


def test_only_what_differs_from_the_default_is_kept_in_the_order_of_the_kind():
    found = checked("k", KNOWN, {"repeat": 2, "size": 0.1})
    assert list(found.items()) == [("size", 0.1), ("repeat", 2.0)]
    assert checked("k", KNOWN, {"repeat": 4, "size": 0.25}) == Settings() == {}
    assert type(checked("k", KNOWN, {"repeat": True})["repeat"]) is float


@given(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1)))
def test_settings_are_values(values):
    settings = Settings(values)
    turned = Settings(dict(reversed(list(values.items()))))
    assert settings == turned and hash(settings) == hash(turned)
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings == values
    values["d"] = 2.0
    assert "d" not in settings
    with pytest.raises(TypeError):
        settings["d"] = 2.0


@given(value=st.floats(-1, 2))
def test_the_nearest_value_is_on_the_grid_and_no_other_is_nearer(value):
    grid = [round(0.05 * i, 4) for i in range(1, 11)]
    found = KNOWN["size"].nearest(value)
    assert found in grid
    assert abs(found - value) <= min(abs(other - value) for other in grid) + 1e-4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"syze": 0.1}, "^unknown setting 'syze' of kind 'k'; nearest: size$"),
        ({"size": 0.51}, "^size 0.51 of kind 'k' is not allowed; 0.05 to 0.5 is$"),
        ({"size": float("nan")}, "^size nan of kind 'k' is not allowed"),
        ({"size": "big"}, "^size 'big' of kind 'k' is not allowed"),
        ({"size": None}, "^size None of kind 'k' is not allowed"),
        ({"repeat": 2.5}, "^repeat 2.5 of kind 'k' is not allowed; whole, 1 to 8 is$"),
        (3, "^settings 3 of kind 'k': give names and numbers, as a dict$"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_is(given, said):
    with pytest.raises(PlanError, match=said) as caught:
        checked("k", KNOWN, given)
    assert "\n" not in str(caught.value)


def test_a_kind_without_settings_says_so():
    with pytest.raises(PlanError, match="^unknown setting 'size' of kind 'k'; it has none, leave"):
        checked("k", {}, {"size": 0.1})
