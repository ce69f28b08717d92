"""Targets: what is found in a file or module, and what is said when it is not."""

import os
import sys

import pytest

from droptune.errors import TargetError
from droptune.target import load_target, user_line

STUDY = """
import torch
import droptune as dt

def study_named(name):
    example = torch.zeros(2, 3)
    return dt.Study(name, model=lambda: torch.nn.Linear(3, 3), train=print, example=example)
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A working directory of its own; modules and paths of the test go with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before.keys():
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def write(path, text: str, head: str = STUDY):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + text)
    return path


def refused(target: str) -> str:
    """Return why a target is refused: one line."""
    with pytest.raises(TargetError) as caught:
        load_target(target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_gives_what_it_calls_study(workplace):
    write(workplace / "mine.py", "other = study_named('b')\nstudy = study_named('a')\n")
    assert load_target("mine.py").name == "a"
    assert load_target("mine.py:other").name == "b"
    assert load_target(str(workplace / "mine.py:other")).name == "b"


def test_a_relative_path_is_relative_to_the_working_directory(workplace):
    write(workplace / "deep/er/mine.py", "study = study_named('a')\n")
    assert load_target("deep/er/mine.py").name == "a"
    assert load_target("./deep/../deep/er/mine.py").name == "a"


def test_the_only_study_is_taken_under_any_name(workplace):
    write(workplace / "mine.py", "tuning = alias = study_named('only')\nstudy = 'not one'\n")
    assert load_target("mine.py").name == "only"


def test_the_folder_of_the_file_is_imported_from_first(workplace):
    write(workplace / "sub/helper_of_mine.py", "NAME = 'from the folder'", head="")
    imports = "from helper_of_mine import NAME\nstudy = study_named(NAME)\n"
    write(workplace / "sub/mine.py", imports)
    assert load_target("sub/mine.py").name == "from the folder"
    assert sys.path[0] == str(workplace / "sub")


def test_a_module_path_imports_from_the_working_directory(workplace):
    write(workplace / "pack/__init__.py", "", head="")
    write(workplace / "pack/module_of_mine.py", "study = study_named('a')\nb = study_named('b')")
    assert load_target("pack.module_of_mine").name == "a"
    assert load_target("pack.module_of_mine:b").name == "b"


def test_a_file_that_is_named_like_a_module_in_use_leaves_it_alone(workplace):
    json = sys.modules["json"]
    write(workplace / "json.py", "study = study_named('a')\n")
    assert load_target("json.py").name == "a"
    assert sys.modules["json"] is json


def test_what_the_file_defines_can_be_imported_by_name(workplace):
    write(workplace / "mine_by_name.py", "study = study_named('a')\n")
    study = load_target("mine_by_name.py")
    assert sys.modules[study.model.__module__].study is study


def test_main_guards_stay_shut(workplace):
    write(workplace / "mine.py", "study = study_named('a')\nif __name__ == '__main__': 1 / 0\n")
    assert load_target("mine.py").name == "a"


def test_a_missing_file_names_the_nearest_of_its_folder(workplace):
    write(workplace / "digits.py", "")
    said = refused("digit.py")
    assert "there is no file 'digit.py'" in said and "nearest: digits.py" in said
    assert "folder" in refused("no/such/file.py")


def test_a_missing_module_names_the_nearest(workplace):
    write(workplace / "digits.py", "")
    assert "no module 'digit'" in refused("digit") and "nearest: digits" in refused("digit")
    assert "no module 'digits.sub'" in refused("digits.sub")


@pytest.mark.parametrize(
    "target", ["", ":study", "mine.py:", "mine.py:a b", "mine.py:a.b", "a:b:c"]
)
def test_a_target_that_is_neither_file_nor_module_is_refused(target):
    assert "is not understood; give file.py" in refused(target)


@pytest.mark.parametrize("target", [".", "..mine", "a..b"])
def test_what_cannot_be_a_module_is_refused(target):
    refused(target)


@pytest.mark.parametrize("target", ["mine.txt", "./mine.txt"])
def test_a_file_that_is_no_python_is_refused(workplace, target):
    write(workplace / "mine.txt", "")
    refused(target)


def test_a_folder_is_no_file(workplace):
    (workplace / "pack.py").mkdir()
    assert "there is no file" in refused("pack.py")


@pytest.mark.parametrize("target", ["mine_bad.py", "mine_bad"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nnn.Linear(1, 2)\n", "mine_bad.py line 2: NameError: name 'nn' is not defined"),
        ("x = 1\ny = (\n", "mine_bad.py line 2: SyntaxError: '(' was never closed"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError: No module named 'no_such"),
        ("raise ValueError('two\\n  lines')\n", "mine_bad.py line 1: ValueError: two lines"),
        ("raise ValueError\n", "mine_bad.py line 1: ValueError"),
        ("import json\n\njson.loads('{')\n", "mine_bad.py line 3: JSONDecodeError: Expecting"),
        ("import sys\nsys.exit(3)\n", "mine_bad.py line 2: it ends the program; put what runs"),
        (
            "import droptune as dt\ndt.Study('a', model=3)\n",
            "mine_bad.py line 2: model is a int",
        ),
    ],
)
def test_a_failing_import_names_the_error_and_the_line_of_the_user(workplace, target, text, said):
    write(workplace / "mine_bad.py", text, head="")
    assert said in refused(target)
    assert "mine_bad" not in sys.modules


def test_a_failing_helper_is_named_where_it_fails(workplace):
    write(workplace / "helper_bad.py", "\n\n1 / 0\n", head="")
    write(workplace / "mine.py", "import helper_bad\n", head="")
    assert "helper_bad.py line 3: ZeroDivisionError" in refused("mine.py")


def test_ctrl_c_while_importing_stays_ctrl_c(workplace):
    write(workplace / "mine.py", "raise KeyboardInterrupt\n", head="")
    with pytest.raises(KeyboardInterrupt):
        load_target("mine.py")


def test_without_a_study_it_is_said_what_to_write(workplace):
    write(workplace / "mine.py", "")
    assert "'mine.py' defines no droptune.Study; write study = Study(...)" in refused("mine.py")
    assert "has no 'tuning'; it defines no droptune.Study" in refused("mine.py:tuning")


def test_several_studies_are_listed(workplace):
    write(workplace / "mine.py", "a = study_named('a')\nb = study_named('b')\n")
    assert "several studies; it defines a, b, give one as mine.py:NAME" in refused("mine.py")


def test_a_name_that_is_no_study_is_refused_with_those_there_are(workplace):
    write(workplace / "mine.py", "a = study_named('a')\n")
    assert "has 'dt', a module; it defines a, give mine.py:a" in refused("mine.py:dt")
    assert "has no 'c'; it defines a, give mine.py:a" in refused("mine.py:c")


def test_the_line_of_the_user_is_none_where_only_libraries_are_to_blame():
    error = ValueError("no traceback")
    assert user_line(error) is None
    try:
        os.listdir(b"\0")
    except ValueError as raised:
        assert user_line(raised).startswith(f"{os.path.abspath(__file__)} line ")
