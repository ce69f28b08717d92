"""Terms of the loss in a study: what is suggested, stored, shown and refused."""

import json

import optuna
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from droptune import Plan, Space, Term
from droptune.cli import main
from droptune.consistency import TERMS
from droptune.errors import SpaceError, StudyError
from droptune.report.text import plan_line
from droptune.sites import Site
from droptune.store import Queries
from tests.small import Notes, fresh, rows, study, trials

SITES = (
    Site("fc1", "fc1", "output", "hidden", "NF", 0, (9,)),
    Site("fc2", "fc2", "output", "hidden", "NF", 1, (9,)),
)
ALL = ["none", "r_drop", "fraternal", "adversarial"]


class Recorder:
    """Answers as an Optuna trial would, and remembers what was asked."""

    def __init__(self, gate="on", term=0, part=0.5):
        self.gate, self.term, self.part, self.asked = gate, term, part, {}

    def suggest_float(self, name, low, high, *, step=None, log=False):
        self.asked[name] = (low, high, step, log)
        return low + self.part * (high - low)

    def suggest_categorical(self, name, choices):
        self.asked[name] = tuple(choices)
        return self.gate if name == "dropout" else choices[self.term]


def asked(space, **answers):
    recorder = Recorder(**answers)
    space.suggest(recorder)
    return recorder.asked


def back(space, plan):
    return space.suggest(optuna.trial.FixedTrial(space.encode(plan)))


# The space


def test_the_parameters_are_the_same_whatever_the_gate_and_the_term():
    space = Space(SITES, "uniform", terms=ALL)
    found = [asked(space, gate=g, term=t) for g in ("on", "off") for t in range(4)]
    assert all(list(other.items()) == list(found[0].items()) for other in found)
    assert found[0]["term"] == tuple(ALL)
    assert found[0]["term.weight.r_drop"] == (0.1, 5.0, None, True)
    assert found[0]["term.weight.fraternal"] == (0.05, 1.0, None, True)
    assert found[0]["term.weight.adversarial"] == (0.05, 2.0, None, True)
    assert found[0]["term.flips"] == (0.01, 0.1, None, True)
    assert set(space.encode(Plan.none())) == set(found[0])


def test_only_what_is_asked_for_is_suggested():
    new = {"term", "term.weight.r_drop"}
    plain = asked(Space(SITES, "uniform")).keys()
    assert asked(Space(SITES, "uniform", terms=["none", "r_drop"])).keys() == plain | new
    assert asked(Space(SITES, "uniform", terms=["r_drop"])).keys() == plain | {"term.weight.r_drop"}
    assert not any(name.startswith("term") for name in plain)


def test_an_off_gate_is_no_dropout_and_no_term():
    assert Space(SITES, terms=ALL).suggest(Recorder("off", 1)) == Plan.none()


def test_the_definition_names_terms_only_where_there_are_some():
    assert "terms" not in Space(SITES).to_json()
    assert Space(SITES, terms=["none", "r_drop"]).to_json()["terms"] == ["none", "r_drop"]


@given(
    name=st.sampled_from(sorted(TERMS)),
    part=st.floats(0, 1),
    flips=st.floats(0.01, 0.1),
    only=st.booleans(),
)
def test_a_plan_with_a_term_comes_back(name, part, flips, only):
    own = TERMS[name]
    weight = float(f"{own.low * (own.high / own.low) ** part:.3g}")
    more = {"flips": float(f"{flips:.3g}"), "site": "fc2"} if own.flips else {}
    plan = Plan.everywhere(SITES, 0.2)
    plan = Plan(dict(plan), Term(name, weight, **more))
    assert back(Space(SITES, "uniform", terms=[name] if only else ALL), plan) == plan


def test_a_term_outside_the_space_becomes_its_nearest_neighbour():
    entries = dict(Plan.everywhere(SITES, 0.2))
    two = Space(SITES, "uniform", terms=["none", "r_drop"])
    assert back(two, Plan(entries, Term("r_drop", 90, 0.1))).term == Term("r_drop", 5.0)
    assert back(two, Plan(entries, "fraternal")).term is None
    assert back(Space(SITES, "uniform", terms=["r_drop"]), Plan(entries)).term == Term("r_drop")


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (["rdrop"], "^unknown term 'rdrop'; nearest: r_drop"),
        ([], "^no term; give one or more of none, r_drop, fraternal, adversarial$"),
    ],
)
def test_what_is_no_term_is_refused(terms, said):
    with pytest.raises(SpaceError, match=said):
        Space(SITES, terms=terms)


def test_an_adversarial_term_needs_a_site_whose_units_are_known():
    odd = Site("odd", "odd", "module", "hidden", "N???", 0, (2, 3, 4))
    with pytest.raises(SpaceError, match="^term 'adversarial' masks units, and the model has no s"):
        Space([odd], terms=["adversarial"])
    assert Space([odd], terms=["r_drop"]).terms == ("r_drop",)


# A study


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


@pytest.mark.parametrize("trainer", ["serial", "fused"])
def test_terms_are_tried_stored_and_gone_on_with(url, trainer):
    one = study(url, terms=ALL, trials=16, epochs=2, confirm_blocks=0, trainer=trainer, slots=4)
    one.using(trials=7).optimize(progress=Notes())
    result = one.optimize(progress=Notes())
    assert trials(url) == [(number, "COMPLETE") for number in range(16)]
    plans = [json.loads(plan) for (plan,) in rows(url, "SELECT plan FROM droptune_run")]
    assert {plan.get("term", {}).get("name", "none") for plan in plans} == set(ALL)
    assert {t["site"] for p in plans if "flips" in (t := p.get("term", {}))} == {"2"}
    with Queries(url) as queries:
        assert queries.best("mine") == result.to_json()
    with pytest.raises(StudyError, match="another space"):
        study(url, trials=17, epochs=2, confirm_blocks=0, trainer=trainer).optimize(
            progress=Notes()
        )


def test_a_study_of_before_there_were_terms_goes_on(url):
    study(url, trials=2, epochs=2, confirm_blocks=0).optimize(progress=Notes())
    (before,) = rows(url, "SELECT definition FROM droptune_study")
    assert "terms" not in json.loads(before[0])["space"]
    study(url, trials=3, epochs=2, confirm_blocks=0, terms=["none"]).optimize(progress=Notes())
    assert [state for _, state in trials(url)].count("COMPLETE") == 3


@pytest.mark.parametrize("terms", ["r_drop", None, [1], 3])
def test_what_is_no_list_of_terms_is_refused(url, terms):
    with pytest.raises(StudyError, match=r"give a list, such as \['none', 'r_drop'\]"):
        study(url, terms=terms)


# What is shown


def test_a_plan_shows_its_term_shortly(url):
    plan = Plan({"0": ("standard", 0.2)}, Term("adversarial", 0.5, 0.1, 0.06, "0"))
    line = "0: standard 0.2 + adversarial 0.5 ramp 0.1 flips 0.06 at 0"
    assert plan_line(plan.to_json()) == str(plan) == line
    many = Plan({str(i): ("standard", 0.2) for i in range(4)}, Term("r_drop", 1 / 3))
    assert plan_line(many.to_json()) == "standard 0.2 at 4 sites + r_drop 0.3333"
    odd = {**plan.to_json(), "term": {"name": "\x1b[2J", "weight": 1.0}}
    assert "\x1b" not in plan_line(odd)


def test_the_table_of_a_trial_names_its_term(url):
    study(url, terms=["r_drop"], trials=6, epochs=1, confirm_blocks=0).optimize(progress=Notes())
    shown = CliRunner().invoke(main, ["show", "--study", "mine", "--trial", "5", "--store", url])
    assert shown.exit_code == 0, shown.output
    assert "added to the loss: r_drop" in shown.output
