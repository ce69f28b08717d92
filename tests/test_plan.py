"""droptune/plan.py: plans as values and as JSON."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from droptune import Plan, apply
from droptune.errors import PlanError
from droptune.kinds import KINDS
from droptune.plan import Entry
from droptune.sites import Site

# Plans as values

rates = st.floats(0, 0.999)


@st.composite
def entries(draw) -> Entry:
    """Any kind, with any of its settings."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    values = {
        name: st.integers(int(s.low), int(s.high)) if s.whole else st.floats(s.low, s.high)
        for name, s in KINDS[kind].settings.items()
    }
    settings = draw(st.fixed_dictionaries({}, optional=values))
    return Entry(kind, draw(rates), settings=settings)


plans = st.dictionaries(st.text(min_size=1, max_size=8), entries(), max_size=5).map(Plan)


@given(plans)
def test_a_plan_survives_json_and_pickle(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan


@given(plans)
def test_equal_plans_have_equal_hashes_in_any_order(plan):
    turned = Plan(dict(reversed(list(plan.items()))))
    assert turned == plan and hash(turned) == hash(plan)


@given(plans)
def test_entries_at_rate_0_are_left_out(plan):
    assert all(entry.rate > 0 for entry in plan.values())
    assert Plan({**plan, "extra": ("standard", 0.0)}) == Plan({**plan, "extra": ("alpha", -0.0)})


def test_plans_differ_by_site_kind_and_rate_and_are_no_dictionaries():
    plan = Plan({"0": ("standard", 0.2)})
    others = [{"1": ("standard", 0.2)}, {"0": ("gaussian", 0.2)}, {"0": ("standard", 0.3)}, {}]
    assert all(plan != Plan(other) for other in others)
    assert plan != {"0": Entry("standard", 0.2)}


def test_a_plan_cannot_be_changed():
    plan = Plan({"0": ("standard", 0.2)})
    with pytest.raises(TypeError):
        plan["0"] = Entry("standard", 0.3)
    with pytest.raises(AttributeError):
        plan["0"].rate = 0.3


def test_a_plan_reads_well():
    assert str(Plan({"0": ("standard", 0.2), "2": ("gaussian", 0.0)})) == "0: standard 0.2"
    assert repr(Plan.none()) == "Plan(no dropout)"
    assert Plan({"a": ("alpha", 0.1)}).to_json() == {
        "version": 1,
        "sites": {"a": {"kind": "alpha", "rate": 0.1, "schedule": "constant"}},
    }


def test_everywhere_takes_the_default_kind_of_each_site_or_the_one_that_is_asked_for():
    maps = Site("conv", "conv", "output", "conv", "NCHW", 0, (4, 8, 8))
    row = Site("fc@input", "fc", "input", "head", "NF", 1, (4,))
    there = Site("drop", "drop", "module", "hidden", "NF", 2, (4,), "alpha", 0.3)
    sites = [maps, row, there]
    assert Plan.everywhere(sites, 0.1) == Plan(
        {"conv": ("channel", 0.1), "fc@input": ("standard", 0.1), "drop": ("alpha", 0.1)}
    )
    assert Plan.everywhere(sites, 0.1, "gaussian") == Plan(
        dict.fromkeys(["conv", "fc@input", "drop"], ("gaussian", 0.1))
    )
    assert Plan.everywhere(sites, 0.0) == Plan.none()


def test_a_named_kind_goes_everywhere_that_it_fits():
    names = {"NF": "drop", "VF": "emb@rows", "NLS": "rnn@state", "NLF": "rnn@input"}
    sites = [Site(n, "", "inside", "recurrent", at, 0, (4, 6)) for at, n in names.items()]
    found = {kind: list(Plan.everywhere(sites, 0.1, kind)) for kind in ("standard", "locked")}
    assert found == {"standard": ["drop", "rnn@input"], "locked": ["rnn@state", "rnn@input"]}
    with pytest.raises(PlanError, match="^unknown kind 'lokced'; nearest: locked"):
        Plan.everywhere([], 0.1, "lokced")


def test_a_saved_plan_is_loaded(tmp_path):
    plan = Plan({"0": ("standard", 1 / 3)})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(str(tmp_path / "plan.json")) == plan


# Settings


def test_settings_tell_plans_apart_unless_they_are_the_defaults():
    plain, small = Entry("pattern", 0.2), Entry("pattern", 0.2, settings={"size": 0.1})
    assert plain != small and len({plain, small, Entry("pattern", 0.2)}) == 2
    assert Entry("pattern", 0.2, settings={"size": 0.25, "repeat": 4}) == plain
    assert plain.to_json() == {"kind": "pattern", "rate": 0.2, "schedule": "constant"}
    assert small.to_json()["settings"] == {"size": 0.1}
    assert Plan({"a": small}).to_json()["sites"]["a"] == small.to_json()


def test_settings_read_well_and_cannot_be_changed():
    entry = Entry("pattern", 0.2, "early", 0.5, {"rotate": 15, "size": 0.1})
    assert str(entry) == "pattern 0.2 early 0.5 (size 0.1, rotate 15)"
    with pytest.raises(TypeError):
        entry.settings["size"] = 0.2


def test_a_plan_stored_before_there_were_settings_is_read():
    old = {"version": 1, "sites": {"a": {"kind": "pattern", "rate": 0.2, "schedule": "constant"}}}
    assert Plan.from_json(old) == Plan({"a": ("pattern", 0.2)})


def test_settings_that_are_not_allowed_name_the_site():
    with pytest.raises(PlanError, match="^site 'fc': size 2 of kind 'pattern' is not allowed; 0.0"):
        Plan({"fc": {"kind": "pattern", "rate": 0.2, "settings": {"size": 2}}})
    with pytest.raises(PlanError, match="^site 'fc': unknown setting 'size' of kind 'standard'; "):
        Plan({"fc": ("standard", 0.2, "constant", None, {"size": 0.2})})


# Errors


@pytest.mark.parametrize("rate", [1, 1.5, -0.1, float("nan"), float("inf"), "a lot", None, [0.1]])
def test_what_is_no_rate_is_refused_and_shown(rate):
    with pytest.raises(PlanError) as caught:
        Entry("standard", rate)
    assert str(caught.value).startswith(f"rate {rate!r} is outside [0, 1); ")


def test_a_rate_that_is_1_in_float32_is_refused_and_the_one_below_is_finite():
    with pytest.raises(PlanError):
        Entry("standard", 1 - 2**-25)
    model = apply(nn.Identity(), Plan({"@input": ("standard", 1 - 2**-24)}), seed=0)
    assert model(torch.ones(1000)).isfinite().all()


def test_unknown_kinds_and_schedules_name_what_is_known():
    with pytest.raises(PlanError, match="^unknown kind 'standart'; nearest: standard, stochastic$"):
        Entry("standart", 0.1)
    with pytest.raises(PlanError, match=r"^unknown kind \['standard'\]"):
        Entry(["standard"], 0.1)
    with pytest.raises(PlanError, match="^unknown schedule 'rampe'; nearest: ramp, late$"):
        Entry("standard", 0.1, "rampe")


@pytest.mark.parametrize(
    "entry", [0.5, "standard", ("standard",), ("standard", 0.1, "ramp", 1, {}, (), 2), {}]
)
def test_an_entry_of_the_wrong_form_is_refused_with_its_site(entry):
    with pytest.raises(PlanError, match=r"^site 'fc': .* is no entry; give a kind and a rate"):
        Plan({"fc": entry})


def test_errors_inside_a_plan_name_the_site():
    with pytest.raises(PlanError, match="^site 'fc': rate 2 is outside"):
        Plan({"fc": ("standard", 2)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "^cannot read the plan '.*plan.json': No such file or directory$"),
        ("{", "plan.json' is not JSON: "),
        ("\udcff", "plan.json' is not JSON: "),
        ("[]", """plan.json': this JSON is no plan; a plan is {"version": 1, """),
        ('{"version": 1, "sites": []}', "this JSON is no plan"),
        ('{"version": 2, "sites": {}}', r"plan version 2 is not known here \(known: 1\); install"),
        ('{"sites": {}}', "plan version None is not known"),
        ('{"version": 1, "sites": {"a": {"kind": "standard", "rate": NaN}}}', "site 'a': rate nan"),
        ('{"version": 1, "sites": {"a": {"kind": "standard", "p": 0.1}}}', "site 'a': .* no entry"),
        ('{"version": 1, "sites": {"a": 3}}', "site 'a': 3 is no entry"),
    ],
)
def test_a_file_that_holds_no_plan_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(path)
    assert "plan.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_plan(tmp_path):
    with pytest.raises(PlanError, match="^cannot read the plan .*: Is a directory$"):
        Plan.load(tmp_path)
