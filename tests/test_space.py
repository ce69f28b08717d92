"""droptune/space.py: a fixed shape of parameters, and plans that come back from them."""

import json
from dataclasses import replace

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from droptune import Plan, Space
from droptune.encodings import CEILING, ENCODINGS, HIGHEST_ELSEWHERE, HIGHEST_RATE, highest_rate
from droptune.errors import SpaceError
from droptune.kinds import KINDS
from droptune.sites import Site

SITES = (
    Site("@input", "", "input", "input", "NCHW", 0, (3, 8, 8)),
    Site("c1", "c1", "output", "conv", "NCHW", 1, (4, 8, 8)),
    Site("c2", "c2", "output", "conv", "NCHW", 2, (4, 8, 8)),
    Site("c3", "c3", "output", "conv", "NCHW", 3, (4, 8, 8)),
    Site("fc1", "fc1", "output", "hidden", "NF", 4, (9,)),
    Site("fc2", "fc2", "output", "hidden", "NF", 5, (9,)),
    Site("drop", "drop", "module", "head", "NF", 6, (9,), "alpha", 0.2),
)
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)
steps = st.integers(0, 100).map(lambda step: step / 100)


class Recorder:
    """Answers as an Optuna trial would, and remembers what was asked."""

    def __init__(self, gate: str, part: float, kind: int = 0) -> None:
        self.gate, self.part, self.kind, self.asked = gate, part, kind, {}

    def suggest_float(self, name, low, high, *, step=None):
        self.asked[name] = (low, high, step)
        return low + round(self.part * (high - low) / step) * step

    def suggest_categorical(self, name, choices):
        self.asked[name] = tuple(choices)
        return self.gate if name == "dropout" else choices[self.kind]


def back(space: Space, plan: Plan) -> Plan:
    """Encode a plan and suggest it again, checked by Optuna."""
    return space.suggest(optuna.trial.FixedTrial(space.encode(plan)))


def rates(plan: Plan) -> dict[str, float]:
    return {site.name: plan[site.name].rate if site.name in plan else 0.0 for site in SITES}


# Suggesting


@every_encoding
@pytest.mark.parametrize("kinds", [None, ["standard"], ["standard", "channel", "gaussian"]])
def test_the_parameters_are_the_same_in_every_suggestion(encoding, kinds):
    space = Space(SITES, encoding, kinds)
    asked = []
    for gate, part, kind in [("on", 0, 0), ("on", 1, -1), ("off", 0.5, 0), ("off", 0, -1)]:
        trial = Recorder(gate, part, kind)
        space.suggest(trial)
        asked.append(trial.asked)
    assert all(list(other.items()) == list(asked[0].items()) for other in asked)
    assert set(space.encode(Plan.none())) == set(asked[0])


@every_encoding
def test_an_off_gate_is_no_dropout_whatever_the_rates(encoding):
    assert Space(SITES, encoding).suggest(Recorder("off", 1)) == Plan.none()
    assert len(Space(SITES, encoding).suggest(Recorder("on", 1))) >= len(SITES) - 2


@every_encoding
def test_an_on_gate_with_rates_of_0_is_no_dropout_too(encoding):
    assert Space(SITES, encoding).suggest(Recorder("on", 0)) == Plan.none()


def test_each_encoding_has_its_parameters():
    def parameters(encoding):
        trial = Recorder("on", 0.5)
        Space(SITES, encoding).suggest(trial)
        return list(trial.asked)

    assert parameters("uniform") == ["dropout", "rate"]
    roles = ["input", "conv", "hidden", "head"]
    assert parameters("shape") == ["dropout", *(f"rate.{role}" for role in roles), "slope"]
    assert parameters("site") == ["dropout", *(f"rate.{site.name}" for site in SITES)]


def test_without_two_sites_of_one_role_there_is_no_slope():
    trial = Recorder("on", 0.5)
    Space([SITES[0], SITES[1]], "shape").suggest(trial)
    assert list(trial.asked) == ["dropout", "rate.input", "rate.conv"]


def test_bounds_are_low_where_noise_hits_raw_information():
    shape, site = Recorder("on", 1), Recorder("on", 1)
    Space(SITES, "shape").suggest(shape)
    Space(SITES, "site").suggest(site)
    assert shape.asked["rate.input"] == site.asked["rate.@input"] == (0.0, 0.3, 0.01)
    assert shape.asked["rate.head"] == site.asked["rate.drop"] == (0.0, 0.6, 0.01)
    assert {role: highest_rate(role) for role in HIGHEST_RATE} == {
        "input": 0.3, "embedding": 0.3, "residual": 0.5,
    }  # fmt: skip
    assert highest_rate("head") == HIGHEST_ELSEWHERE


def test_uniform_is_one_rate_everywhere():
    plan = Space(SITES, "uniform").suggest(optuna.trial.FixedTrial({"dropout": "on", "rate": 0.4}))
    assert set(rates(plan).values()) == {0.4}


def shaped(slope: float, conv: float = 0.3) -> Plan:
    params = {"dropout": "on", "rate.input": 0.1, "rate.conv": conv, "rate.hidden": 0.2}
    trial = optuna.trial.FixedTrial(params | {"rate.head": 0.5, "slope": slope})
    return Space(SITES, "shape").suggest(trial)


def test_the_slope_turns_rates_over_depth_within_each_role():
    late = {"@input": 0.1, "c1": 0.15, "c2": 0.3, "c3": 0.45, "fc1": 0.1, "fc2": 0.3, "drop": 0.5}
    assert rates(shaped(0.5)) == late
    assert rates(shaped(-1.0)) | {"c1": 0.6, "c3": 0.0, "fc1": 0.4} == rates(shaped(-1.0))


@given(slope=st.integers(-10, 10), conv=st.integers(0, 60))
def test_the_slope_leaves_the_means_alone_and_no_rate_passes_the_ceiling(slope, conv):
    found = rates(shaped(slope / 10, conv / 100))
    maps = [found[name] for name in ("c1", "c2", "c3")]
    assert sum(maps) / 3 == pytest.approx(conv / 100, abs=1e-4)
    assert 0 <= min(maps) and max(maps) <= CEILING


# Kinds


def test_by_default_each_site_has_its_default_kind():
    assert Space(SITES).kinds == {
        "@input": ("standard",), "c1": ("channel",), "c2": ("channel",), "c3": ("channel",),
        "fc1": ("standard",), "fc2": ("standard",), "drop": ("alpha",),
    }  # fmt: skip


def test_kinds_are_chosen_by_role_among_those_that_fit():
    space = Space(SITES, kinds=["standard", "channel"])
    assert space.kinds["c1"] == space.kinds["@input"] == ("standard", "channel")
    assert space.kinds["fc1"] == space.kinds["drop"] == ("standard",)
    trial = Recorder("on", 0.5, -1)
    plan = space.suggest(trial)
    assert {name for name in trial.asked if name.startswith("kind")} == {"kind.input", "kind.conv"}
    assert plan["c2"].kind == "channel" and plan["fc1"].kind == "standard"


def test_where_no_asked_kind_fits_the_default_kind_stays():
    space = Space(SITES, kinds=["channel"])
    assert space.kinds["fc1"] == ("standard",) and space.kinds["drop"] == ("alpha",)


def test_asked_kinds_that_no_role_can_take_as_a_whole_are_named():
    mixed = [*SITES, Site("rnn", "rnn", "output", "hidden", "NLF", 7, (5, 9))]
    kinds = ["locked", "standard", "drop_key", "channel"]
    assert Space(mixed, kinds=kinds).unused_kinds == ["locked", "drop_key"]
    assert Space(mixed).unused_kinds == []


def test_one_kind_may_be_given_alone_and_doubles_count_once():
    assert Space(SITES, kinds="gaussian").kinds == Space(SITES, kinds=["gaussian"] * 2).kinds


# Encoding


@given(rate=st.integers(0, 60).map(lambda step: step / 100))
def test_uniform_plans_come_back(rate):
    plan = Plan.everywhere(SITES, rate)
    assert back(Space(SITES, "uniform"), plan) == plan


@given(st.lists(st.integers(0, 30).map(lambda s: s / 100), min_size=7, max_size=7), st.data())
def test_plans_by_site_come_back_with_their_kinds(values, data):
    space = Space(SITES, "site", ["standard", "channel", "gaussian"])
    by_role = {
        role: data.draw(st.sampled_from(choices)) for role, choices in space._choices.items()
    }
    plan = Plan({s.name: (by_role[s.role], rate) for s, rate in zip(SITES, values, strict=True)})
    assert back(space, plan) == plan


@given(
    means=st.fixed_dictionaries(
        {
            f"rate.{role}": st.integers(0, round(highest_rate(role) * 100)).map(lambda s: s / 100)
            for role in ("input", "conv", "hidden", "head")
        }
    ),
    slope=st.integers(-10, 10),
)
def test_shaped_plans_come_back_from_every_point_of_the_grid(means, slope):
    space = Space(SITES, "shape")
    params = {"dropout": "on", "slope": slope / 10, **means}
    plan = space.suggest(optuna.trial.FixedTrial(params))
    assert back(space, plan) == plan


@every_encoding
@given(st.dictionaries(st.sampled_from([s.name for s in SITES]), steps))
def test_any_plan_has_parameters_within_the_space(encoding, values):
    assume(all(value < 1 for value in values.values()))
    space = Space(SITES, encoding)
    plan = Plan({name: ("gaussian", value) for name, value in values.items()})
    nearest = back(space, plan)  # FixedTrial warns, and fails here, outside of the bounds
    assert back(space, nearest) == nearest
    assert bool(nearest) or not plan or max(values.values()) < 0.05


def test_sites_that_the_space_does_not_have_are_left_out():
    plan = Plan({"fc1": ("standard", 0.2)})
    space = Space(SITES, "site")
    assert space.encode(Plan({**plan, "elsewhere": ("standard", 0.9)})) == space.encode(plan)


def test_a_plan_outside_the_bounds_becomes_its_nearest_neighbour():
    space = Space(SITES, "site")
    assert rates(back(space, Plan({"@input": ("standard", 0.9)})))["@input"] == 0.3
    assert rates(back(space, Plan({"fc1": ("standard", 0.123)})))["fc1"] == 0.12


# Fixed plans


@every_encoding
def test_fixed_plans_are_distinct_and_begin_with_no_dropout_and_the_model_as_given(encoding):
    given_with = Plan({"drop": ("alpha", 0.2)})
    fixed = Space(SITES, encoding).fixed_plans(given_with)
    assert list(fixed) == [
        "no dropout",
        "as given",
        "0.1 everywhere",
        "0.5 before the head",
        "0.2 input + 0.5 hidden",
    ]
    assert fixed["no dropout"] == Plan.none() and fixed["as given"] == given_with
    assert len(set(fixed.values())) == len(fixed)
    assert rates(fixed["0.5 before the head"]) == dict.fromkeys(rates(Plan()), 0.0) | {"drop": 0.5}
    assert rates(fixed["0.2 input + 0.5 hidden"]) == {s.name: 0.5 for s in SITES} | {"@input": 0.2}


def test_a_model_given_without_dropout_has_no_second_control():
    assert "as given" not in Space(SITES).fixed_plans(Plan.none())


def test_an_embedding_is_left_out_of_the_habits():
    words = Site("emb", "emb", "output", "embedding", "NLF", 0, (5, 4))
    fixed = Space([words, SITES[6]]).fixed_plans(Plan.none())
    assert list(fixed) == ["no dropout", "0.1 everywhere", "0.5 before the head"]


# Definition and errors


def test_the_definition_is_json_and_tells_spaces_apart():
    spaces = [
        Space(SITES), Space(SITES, "site"), Space(SITES, kinds=["gaussian"]), Space(SITES[1:]),
    ]  # fmt: skip
    assert len({json.dumps(space.to_json()) for space in spaces}) == len(spaces)
    assert Space(SITES).to_json() == Space(list(SITES), "shape").to_json()
    assert Space(SITES[:1]).to_json() == {
        "encoding": "shape",
        "sites": [{"name": "@input", "role": "input", "kinds": ["standard"]}],
    }


def test_unknown_encodings_and_kinds_are_refused_with_what_is_allowed():
    with pytest.raises(SpaceError, match="^unknown encoding 'fine'; allowed: uniform, shape, site"):
        Space(SITES, "fine")
    nearest = "^unknown kind 'standart'; nearest: standard, stochastic$"
    with pytest.raises(SpaceError, match=nearest):
        Space(SITES, kinds=["standart"])


def test_a_model_without_sites_is_refused_with_what_it_needs():
    with pytest.raises(SpaceError, match="^the model has no place for dropout .* float input, or "):
        Space([])


def test_every_kind_may_be_asked_for_and_is_tried_where_layout_and_role_fit():
    kinds = Space(SITES, kinds=list(KINDS)).kinds
    anywhere = {"standard", "gaussian", "alpha", "stochastic"}
    assert set(kinds["fc1"]) == anywhere | {"concrete", "controlled"}
    maps = {"channel", "feature_alpha", "max_drop", "max_drop_channel", "drop_block", "pattern"}
    assert set(kinds["c1"]) == set(kinds["@input"]) == anywhere | maps
    sequence = Site("rows", "rows", "output", "hidden", "NLF", 0, (5, 9))
    rows = set(Space([sequence], kinds=list(KINDS)).kinds["rows"])
    assert rows == anywhere | {"locked", "pattern_tokens", "concrete", "controlled"}


def test_drop_path_is_tried_on_residual_branches_only():
    assert Space(SITES, kinds=["drop_path"]).kinds == Space(SITES).kinds
    for site in SITES:
        branch = replace(site, role="residual")
        assert Space([branch], kinds=["drop_path"]).kinds == {site.name: ("drop_path",)}


def test_the_gate_is_settled_for_no_dropout_is_tried_once_anyway():
    space = Space(SITES)
    assert space.settled == {"dropout": "on"}
    assert space.encode(Plan.none())["dropout"] == "off"
    assert space.suggest(Recorder("off", 0.5)) == Plan.none()


# Settings

PATTERNS = ["pattern", "standard"]  # fits @input and the convolutions


def setting_names(space: Space) -> list[str]:
    return [name for name in asks(space) if name.startswith("pattern.")]


def test_settings_of_asked_kinds_are_parameters_one_for_each_role():
    space = Space(SITES, "site", PATTERNS)
    names = [f"pattern.{n}.{role}" for role in ("input", "conv") for n in KINDS["pattern"].settings]
    assert setting_names(space) == names
    assert asks(space)["pattern.rotate.conv"] == (0, 75, 15)
    assert setting_names(Space(SITES[4:], "site", PATTERNS)) == []
    assert setting_names(Space(SITES, "site", ["standard"])) == []


@pytest.mark.parametrize("kind", [0, 1])
def test_settings_are_asked_for_whatever_kind_is_chosen_and_are_those_of_the_pattern(kind):
    space, trial = Space(SITES, "uniform", PATTERNS), Recorder("on", 1, kind)
    plan = space.suggest(trial)
    assert set(trial.asked) == set(space.encode(plan)) == set(space.encode(Plan.none()))
    highest = {name: known.high for name, known in KINDS["pattern"].settings.items()}
    highest.pop("share_c")  # its default
    for site in ("@input", "c1", "c3"):
        assert plan[site].settings == (highest if kind == 0 else {})
    assert plan["fc1"].settings == {}


@given(data=st.data(), encoding=st.sampled_from(list(ENCODINGS)))
def test_settings_come_back_with_the_plan(data, encoding):
    space = Space(SITES, encoding, PATTERNS)
    params = space.encode(Plan.everywhere(SITES, 0.2, "standard"))
    for role in ("input", "conv"):
        params[f"kind.{role}"] = data.draw(st.sampled_from(PATTERNS))
        for name, known in KINDS["pattern"].settings.items():
            steps = round((known.high - known.low) / known.step)
            step = data.draw(st.integers(0, steps))
            params[f"pattern.{name}.{role}"] = round(known.low + step * known.step, 4)
    plan = space.suggest(optuna.trial.FixedTrial(params))
    assert back(space, plan) == plan
    if params["kind.conv"] == "pattern":
        chosen = KINDS["pattern"].values(plan["c1"].settings)
        assert all(params[f"pattern.{name}.conv"] == value for name, value in chosen.items())


def test_settings_between_two_steps_become_the_nearest():
    space = Space(SITES[1:2], "uniform", ["pattern"])
    plan = Plan({"c1": ("pattern", 0.2, "constant", None, {"rotate": 37, "size": 0.12})})
    assert back(space, plan)["c1"].settings == {"rotate": 30, "size": 0.1}


# Schedules


def test_rates_move_where_that_is_asked_for_and_the_shape_stays_fixed():
    space = Space(SITES, "uniform", schedules=["constant", "early", "late"])
    asked = []
    for gate in ("on", "off"):
        recorder = Recorder(gate, 0.5)
        space.suggest(recorder)
        asked.append(recorder.asked)
    assert asked[0] == asked[1]
    assert asked[0]["schedule"] == ("constant", "early", "late")
    assert asked[0]["fraction"] == (0.05, 1.0, 0.05)
    assert not {"schedule", "fraction"} & asks(Space(SITES, "uniform")).keys()
    assert "schedules" not in Space(SITES, "uniform").to_json()
    assert space.to_json()["schedules"] == ["constant", "early", "late"]


def asks(space: Space) -> dict:
    recorder = Recorder("on", 0.5)
    space.suggest(recorder)
    return recorder.asked


@pytest.mark.parametrize("schedules", [["early"], ["constant", "late", "early"]])
@pytest.mark.parametrize("fraction", [0.05, 0.35, 1.0])
def test_a_plan_whose_rates_move_comes_back(schedules, fraction):
    space = Space(SITES[4:6], "uniform", schedules=schedules)
    plan = Plan({name: ("standard", 0.2, "early", fraction) for name in ("fc1", "fc2")})
    assert back(space, plan) == plan


def test_a_constant_plan_comes_back_where_rates_may_move():
    space = Space(SITES[4:6], "uniform", schedules=["late", "constant"])
    plan = Plan.everywhere(SITES[4:6], 0.2)
    assert back(space, plan) == plan


@pytest.mark.parametrize(
    ("schedules", "said"),
    [(["erly"], "unknown schedule 'erly'; nearest: early"), ([], "no schedule; give one or more")],
)
def test_schedules_that_are_none_are_refused(schedules, said):
    with pytest.raises(SpaceError, match=said):
        Space(SITES, "uniform", schedules=schedules)
