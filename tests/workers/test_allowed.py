"""What a worker runs for others: each way in that a row of the database could try."""

import pytest

from droptune.workers.allowed import NotAllowed, check_options, check_prefixes, check_target

OWN = ["my_project", "other.part"]


@pytest.mark.parametrize(
    "target",
    ["my_project", "my_project.x", "my_project.x.y:study", "my_project:s", "other.part.x:é"],
)
def test_what_is_named_and_what_is_inside_it_is_allowed(target):
    check_target(target, OWN)


@pytest.mark.parametrize(
    "target",
    [
        "my_project_evil",
        "my_projectx.y",
        "other",
        "other.partial",
        "os",
        "os:system",
        "droptune.workers.child",
        "xmy_project",
        "MY_PROJECT",
    ],
)
def test_other_modules_are_refused_with_what_to_add(target):
    with pytest.raises(
        NotAllowed, match=f"not in what this worker may import.*--allow {target[:2]}"
    ):
        check_target(target, OWN)
    with pytest.raises(NotAllowed, match=r"may import \(none\)"):
        check_target(target, [])


@pytest.mark.parametrize(
    "target",
    [
        "my_project.py",
        "my_project.PY",
        "my_project/../evil",
        "my_project/x.py",
        "/etc/my_project.py",
        "..my_project",
        ".my_project",
        "my_project.",
        "my_project..x",
        "my_project x",
        " my_project",
        "my_project\n",
        "my_project\\x",
        "my_project:",
        "my_project:a b",
        "my_project:a.b",
        "my_project:a:b",
        "my_project:__import__('os')",
        "my_project;os",
        "my_project\0",
        "file:///my_project",
        "",
        b"my_project",
        None,
    ],
)
def test_what_is_no_module_is_refused(target):
    with pytest.raises(NotAllowed, match="imports modules alone"):
        check_target(target, OWN)


def test_files_are_allowed_on_demand_and_then_modules_still_need_a_name():
    check_target("/somewhere/study.py:mine", [], files=True)
    with pytest.raises(NotAllowed):
        check_target("os.path", OWN, files=True)


@pytest.mark.parametrize("prefix", ["", ".", "*", "my_project.", "my-project", "a/b", "a b"])
def test_a_prefix_is_the_name_of_a_module(prefix):
    with pytest.raises(NotAllowed, match="--allow"):
        check_prefixes(["fine", prefix])


def test_options_are_those_that_submit_writes():
    options = {
        "trials": 8,
        "time": "10m",
        "seed": 1,
        "objective": ["val_loss", "accuracy"],
        "tune": ["lr"],
        "warm_start": ["earlier"],
        "slots": "auto",
        "trainer": "serial",
        "confirm_blocks": 0,
        "recalibrate": True,
    }
    assert check_options(options) == options


@pytest.mark.parametrize(
    "options",
    [
        {"store": "sqlite:////etc/x.db"},
        {"device": "cuda:0"},
        {"name": "other"},
        {"model": "os.system"},
        {"train": "os.system"},
        {"data": "/etc/passwd"},
        {"__class__": "x"},
        {"trainer": "os.system"},
        {"trainer": {"call": "x"}},
        {"warm_start": ["sqlite:////etc/x.db#s"]},
        {"warm_start": ["postgresql://evil/x#s"]},
        {"warm_start": "earlier"},
        {"trials": "8"},
        {"trials": True},
        {"seed": 1.5},
        {"sampler": ["tpe"]},
        {"objective": {"a": 1}},
        {"recalibrate": 1},
        {"slots": "8; rm"},
        ["trials"],
        None,
    ],
)
def test_other_options_are_refused(options):
    with pytest.raises(NotAllowed, match="option"):
        check_options(options)


def test_a_url_is_refused_without_its_password():
    with pytest.raises(NotAllowed, match="a URL, which may hold a password") as error:
        check_options({"warm_start": ["postgresql://me:hunter2@host/name#mine"]})
    assert "hunter2" not in str(error.value)
