"""Warm start: which plans a study starts with, and that it stays the same study."""

import json

import pytest
from click.testing import CliRunner
from torch import nn

from droptune import Plan
from droptune.cli import main
from droptune.errors import DroptuneError, StudyError
from droptune.store import Queries, Store
from tests.small import Notes, fresh, mlp, rows, runs, study


def deeper():
    return nn.Sequential(
        nn.Linear(30, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )


def recurrent():
    return nn.Sequential(nn.Unflatten(1, (5, 6)), nn.LSTM(6, 4, batch_first=True), Last())


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, outputs):
        return self.head(outputs[0][:, -1])


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def done(url, name="mine", **changes):
    notes = Notes()
    settings = {"trials": 9, "confirm_blocks": 0, "epochs": 1} | changes
    result = study(url, name=name, **settings).optimize(progress=notes)
    return result, notes.messages


def seeds(url, name="mine"):
    """Return name -> plan of the fixed trials that came from other studies."""
    found = Queries(url).trials(name)
    return {
        row["name"]: Plan.from_json(row["plan"])
        for row in found
        if (row["name"] or "").startswith("from ")
    }


def helped(url, name="mine", plan=None):
    """Store that a plan helped in a study."""
    plan = plan or Queries(url).best(name)["plan"]
    with Store(url) as store:
        row = {"verdict": "helps", "text": "helps", "plan": plan, "objective": "val_loss"}
        row |= {"direction": "minimize", "best": None, "control": None, "difference": None}
        row |= {"low": None, "high": None, "p_value": None, "blocks": 2, "level": 0.95}
        row |= {"test": None, "details": {}}
        store.save_verdict(store.study(name)["id"], row)


GOOD = Plan({"@input": ("standard", 0.11), "2": ("standard", 0.33)})


# By name


def test_the_best_trials_of_a_study_are_tried_first(url):
    done(url, "digits")
    done(url, "mine", model=deeper, warm_start=["digits"])
    found = Queries(url).trials("digits")
    best = sorted(found, key=lambda row: (row["value"], row["number"]))[:3]
    with_dropout = [row for row in best if row["plan"]["sites"]]
    assert with_dropout
    names = [row["name"] for row in Queries(url).trials("mine")]
    assert names[5 : 5 + len(seeds(url))] == list(seeds(url)), "behind the fixed plans"
    assert set(seeds(url)) <= {f"from digits, trial {row['number']}" for row in with_dropout}
    ran = [row[1] for row in runs(url, "search")]
    assert set(seeds(url)) <= set(ran), "they were trained"


def test_the_confirmed_plan_comes_first_and_is_carried_over_by_depth(url):
    done(url, "digits")
    helped(url, "digits", GOOD.to_json())
    _, messages = done(url, "mine", model=deeper, warm_start=["digits"])
    name, plan = next(iter(seeds(url).items()))
    sites = {row["name"]: row["role"] for row in Queries(url).study("mine")["sites"]}
    assert name == "from digits"
    assert {sites[site] for site in plan} >= {"input"}
    assert all(entry.rate in (0.11, 0.33) for entry in plan.values())


def test_what_is_lost_is_said(url):
    done(url, "digits", tune=["lr"], seed=3)
    helped(url, "digits", Plan(GOOD, training={"lr": 0.5}).to_json())
    _, messages = done(url, "mine", warm_start=["digits"])
    assert any("'digits' left out or changed: " in text and "lr 0.5" in text for text in messages)
    assert seeds(url)["from digits"] == GOOD
    done(url, "tuned", warm_start=["digits"], tune=["lr"])
    assert seeds(url, "tuned")["from digits"].training == {"lr": 0.5}


def test_a_study_of_another_database_can_be_named(tmp_path, url):
    (tmp_path / "there").mkdir()
    other = fresh(tmp_path / "there")
    done(other, "digits")
    helped(other, "digits", GOOD.to_json())
    source = f"{other}#digits"
    done(url, "mine", warm_start=[source])
    assert seeds(url)["from digits"] == GOOD
    text = rows(url, "SELECT definition FROM droptune_study")[0][0]
    assert "sqlite" not in text, "a URL may hold a password"
    done(url, "mine", warm_start=[source], trials=10)


def test_the_command_line_takes_several_and_none(tmp_path, url, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done(url, "a"), done(url, "b", seed=5)
    helped(url, "a", GOOD.to_json())
    helped(url, "b", Plan({"2": ("standard", 0.44)}).to_json())
    (tmp_path / "mine.py").write_text(
        f"from tests.small import study\nstudy = study({url!r}, trials=14, confirm_blocks=0)\n"
    )
    command = ["optimize", "mine.py", "--quiet"]
    result = CliRunner().invoke(main, [*command, "--from", "a", "--from", "b"])
    assert result.exit_code == 0, result.output
    assert {name.split(",")[0] for name in seeds(url)} == {"from a", "from b"}
    CliRunner().invoke(main, [*command, "--study", "cold", "--from", "none"])
    assert Queries(url).trials("cold") and not seeds(url, "cold")


# From the store


def test_a_plan_that_helped_in_a_similar_study_is_tried_and_said(url):
    done(url, "digits")
    helped(url, "digits", GOOD.to_json())
    _, messages = done(url)
    assert seeds(url) == {"from digits": GOOD}
    assert any("'digits' has sites of the same roles" in text for text in messages)
    done(url, "cold", warm_start=[])
    assert not seeds(url, "cold")


def test_other_studies_do_not_matter(url):
    done(url, "digits")  # without a verdict
    done(url, "recurrent", model=recurrent)
    helped(url, "recurrent")
    _, messages = done(url)
    assert not seeds(url) and not any("roles" in text for text in messages)
    assert "warm_start" not in rows(url, "SELECT definition FROM droptune_study")[-1][0]


def test_the_same_model_comes_before_a_later_study(url):
    done(url, "same")
    helped(url, "same", GOOD.to_json())
    done(url, "later", model=lambda: mlp(0.4), warm_start=[])
    helped(url, "later", Plan({"2": ("standard", 0.44)}).to_json())
    done(url)
    assert list(seeds(url)) == ["from same"]


# The same study


def test_a_study_keeps_what_it_started_with(url):
    done(url, "digits")
    helped(url, "digits", GOOD.to_json())
    done(url, trials=7)
    before = seeds(url)
    helped(url, "digits", Plan({"2": ("standard", 0.55)}).to_json())
    done(url, "more", warm_start=[])
    helped(url, "more")
    done(url, trials=9)
    assert seeds(url) == before
    done(url, trials=10, warm_start=["digits"])
    assert seeds(url) == before


def test_a_death_between_the_study_and_its_trials_loses_no_plan(url, monkeypatch):
    done(url, "digits")
    helped(url, "digits", GOOD.to_json())

    class Died(Exception):
        pass

    def dies(*args):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr("droptune.search.Search.enqueue", dies)
        done(url)
    helped(url, "digits", Plan({"2": ("standard", 0.55)}).to_json())
    done(url)
    assert seeds(url) == {"from digits": GOOD}


def test_a_stored_study_cannot_start_otherwise(url):
    done(url, "digits"), done(url, "mine", warm_start=["digits"])
    for other in ([], ["digits", "x"]):
        with pytest.raises(StudyError, match="'mine' started with plans of.*'digits'.*new name"):
            done(url, "mine", warm_start=other)
    done(url, "cold", warm_start=[])
    with pytest.raises(StudyError, match="of other studies: none, and that cannot be changed"):
        done(url, "cold", warm_start=["digits"])


def test_the_definition_of_other_studies_is_as_before(url):
    done(url)
    stored = json.loads(rows(url, "SELECT definition FROM droptune_study")[0][0])
    assert "warm_start" not in stored


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("digitz", "no study 'digitz' in this database; nearest: digits"),
        ("mine", "cannot start with plans of its own"),
        ("empty", "'empty' has no complete trial to start from"),
        ("sqlite:///nowhere.db#x", "nowhere.db"),
        ("sqlite:///nowhere.db", "needs the study's name behind it"),
    ],
)
def test_a_source_that_is_none_is_one_line(tmp_path, monkeypatch, url, source, said):
    monkeypatch.chdir(tmp_path)
    done(url, "digits", trials=1)
    with Store(url) as store:
        store.create_study("empty", {}, {}, [])
    with pytest.raises(DroptuneError, match=said) as caught:
        done(url, "mine", warm_start=[source])
    assert "\n" not in str(caught.value)
    assert [row["name"] for row in Queries(url).studies()] == ["digits", "empty"]


@pytest.mark.parametrize("value", ["digits", [3], 5])
def test_what_is_no_list_of_names_is_told(url, value):
    with pytest.raises(StudyError, match="warm_start .*give a list"):
        study(url, warm_start=value)
