"""The queue of submitted studies: what a name that is there may become, and who may end it."""

import pytest

from droptune.errors import StudyError
from droptune.store import Store, submissions
from droptune.store.service import Service


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    url = f"sqlite:///{tmp_path}/d.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").fresh()
    with Store(url) as opened:
        yield opened


def names(store) -> list:
    return [(row["name"], row["options"]) for row in submissions.queued(store)]


def state(store, name: str) -> tuple:
    with Service(store.url) as service:
        (row,) = (row for row in service.status()["studies"] if row["name"] == name)
    return row["state"], row["message"]


def test_studies_wait_in_the_order_they_came_in(store):
    for name in ("b", "a", "c"):
        assert submissions.submit(store, name, "my.part", {"trials": 8}) == "queued"
    assert names(store) == [(name, {"trials": 8}) for name in ("b", "a", "c")]
    submissions.submit(store, "b", "my.part", {"trials": 9})  # keeps its place
    assert names(store)[0] == ("b", {"trials": 9})


@pytest.mark.parametrize("ended", [None, "done"])
def test_a_name_that_is_there_takes_another_budget_alone(store, ended):
    submissions.submit(store, "mine", "my.part", {"trials": 8, "sampler": "tpe"})
    if ended:
        (row,) = submissions.queued(store)
        submissions.end(store, row["id"], row["submitted_at"], ended, "helps")
    for target, options, said in (
        ("my.part", {"trials": 8, "sampler": "tpe"}, "already with this budget"),
        ("my.other", {"trials": 9, "sampler": "tpe"}, "as 'my.part' with other options"),
        ("my.part", {"trials": 9, "sampler": "gp"}, "take a new name"),
    ):
        with pytest.raises(StudyError, match=said):
            submissions.submit(store, "mine", target, options)
    more = {"trials": 9, "sampler": "tpe", "confirm_blocks": 4}
    assert submissions.submit(store, "mine", "my.part", more) == "updated"
    assert names(store) == [("mine", more)]
    assert state(store, "mine") == ("queued", None)


@pytest.mark.parametrize("ended", ["failed", "withdrawn"])
def test_what_failed_may_be_submitted_again_as_anything(store, ended):
    submissions.submit(store, "mine", "my.part", {})
    if ended == "withdrawn":
        submissions.withdraw(store, "mine")
    else:
        (row,) = submissions.queued(store)
        submissions.end(store, row["id"], row["submitted_at"], "failed", "no such\nsite")
        assert state(store, "mine") == ("failed", "no such\nsite")
    assert not names(store)
    submissions.submit(store, "mine", "my.other", {"seed": 1})
    assert names(store) == [("mine", {"seed": 1})]


def test_who_worked_on_an_older_version_cannot_end_a_newer(store):
    submissions.submit(store, "mine", "my.part", {"trials": 8})
    (old,) = submissions.queued(store)
    submissions.submit(store, "mine", "my.part", {"trials": 9})
    submissions.end(store, old["id"], old["submitted_at"], "done")
    (new,) = submissions.queued(store)
    submissions.end(store, new["id"], new["submitted_at"], "queued", "may not import it")
    assert state(store, "mine") == ("queued", "may not import it")
    submissions.withdraw(store, "mine")
    submissions.end(store, new["id"], new["submitted_at"], "done")
    assert state(store, "mine")[0] == "withdrawn"


def test_only_what_waits_can_be_withdrawn(store):
    with pytest.raises(StudyError, match="is not in the queue"):
        submissions.withdraw(store, "mine")
    submissions.submit(store, "mine", "my.part", {})
    (row,) = submissions.queued(store)
    submissions.end(store, row["id"], row["submitted_at"], "done")
    with pytest.raises(StudyError, match="is done"):
        submissions.withdraw(store, "mine")
