"""The shape of the project: who imports whom, what is public, how long things are."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import droptune

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CODE = ("droptune", "alembic", "studies", "benchmarks", "tests")
SOURCES = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 450, 60  # lines


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run this Python on its own."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


# Imports


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml on the package in `folder`."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return python("-c", command, "--no-cache", "--config", str(ROOT / "pyproject.toml"), cwd=folder)


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A package with one empty module for every place in the layers."""
    layers = CONFIG["contracts"][0]["layers"]
    package = tmp_path / "droptune"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in re.findall(r"\w+", " ".join(layers)):
        if (ROOT / "droptune" / name).is_dir():
            (package / name).mkdir()
            (package / name / "__init__.py").touch()
            (package / name / "inner.py").touch()
        else:
            (package / f"{name}.py").touch()
    return tmp_path


def test_imports_go_one_way_and_libraries_stay_in_their_place():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_contracts_hold_for_a_package_that_keeps_them(skeleton):
    (skeleton / "droptune/cli/inner.py").write_text("import click\nfrom droptune import study\n")
    (skeleton / "droptune/study.py").write_text("from droptune import data, search, store\n")
    (skeleton / "droptune/search.py").write_text("import optuna.samplers\n")
    (skeleton / "droptune/store/inner.py").write_text("import alembic.command, sqlalchemy.orm\n")
    (skeleton / "droptune/kinds/inner.py").write_text("import torch.nn\n")
    (skeleton / "droptune/data.py").write_text("import torch\nfrom droptune import errors\n")
    (skeleton / "droptune/__init__.py").write_text("from droptune import study\n")
    result = lint_imports(skeleton)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("errors.py", "from droptune import plan", "Imports go one way"),
        ("store/inner.py", "from droptune import progress", "Imports go one way"),
        ("search.py", "def late():\n    from droptune import verdict", "Imports go one way"),
        ("newcomer.py", "", "Imports go one way"),
        ("kinds/other.py", "from droptune.kinds import inner", "No cycles"),
        ("study.py", "import optuna", "Optuna only"),
        ("study.py", "import sqlalchemy", "SQLAlchemy and Alembic only"),
        ("study.py", "from click import echo", "click only"),
        ("store/inner.py", "import torch", "torch only"),
    ],
)
def test_the_contracts_can_be_broken(skeleton, module, line, broken):
    if module == "kinds/other.py":
        (skeleton / "droptune/kinds/inner.py").write_text("from droptune.kinds import other\n")
    (skeleton / "droptune" / module).write_text(line + "\n")
    result = lint_imports(skeleton)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(rf"{broken}.* BROKEN", result.stdout), result.stdout


def heavy(module: str) -> str:
    """Return which of torch and optuna the import of `module` loads."""
    result = python("-c", f"import sys, {module}; print({{'torch', 'optuna'}} & {{*sys.modules}})")
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "module",
    ["droptune", "droptune.cli", "droptune.store", "droptune.progress", "droptune.verdict"],
)
def test_what_answers_at_once_loads_neither_torch_nor_optuna(module):
    assert heavy(module) == "set()"


@pytest.mark.parametrize(("module", "loads"), [("droptune.data", "torch"), ("optuna", "optuna")])
def test_a_module_that_loads_too_much_would_be_seen(module, loads):
    assert loads in heavy(module)


# The public names


def test_all_is_what_the_package_shows():
    shown = [name for name in dir(droptune) if not name.startswith("_")]
    assert sorted(droptune.__all__) == sorted(shown)


def test_every_public_name_is_there_and_is_droptunes():
    assert droptune.__all__
    for name in droptune.__all__:
        home = getattr(getattr(droptune, name), "__module__", "droptune")  # constants have none
        assert home.split(".")[0] == "droptune", name


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(droptune, "no_such_name")  # noqa: B009


# Lengths


def long_functions(source: str) -> list[str]:
    """Return the functions of `MAX_FUNCTION` lines or more."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions) and node.end_lineno - node.lineno + 1 >= MAX_FUNCTION
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert source.count("\n") < MAX_FILE
    assert long_functions(source) == []


def test_a_long_function_would_be_seen():
    body = "    pass\n"
    assert long_functions("def f():\n" + body * (MAX_FUNCTION - 2)) == []
    assert long_functions("def f():\n" + body * (MAX_FUNCTION - 1)) == ["f: 60 lines"]
    assert SOURCES


# Documents


def dead_links(text: str, folder: Path) -> list[str]:
    """Return the relative links of a Markdown text that lead nowhere."""
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    return [link for link in local if link and not (folder / link).exists()]


def test_the_readme_has_no_dead_relative_link():
    assert dead_links((ROOT / "README.md").read_text(), ROOT) == []


def test_no_document_has_a_dead_relative_link():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")]:
        assert dead_links(path.read_text(), path.parent) == [], path


def test_a_dead_link_would_be_seen():
    text = "[a](LICENSE) [b](https://x.org/y) [c](#here) [d](no/such.md#part)"
    assert dead_links(text, ROOT) == ["no/such.md"]
