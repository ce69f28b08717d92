"""What is built and installed: the wheel, the sdist, and the pins."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# A study that takes no time, for a wheel has no studies.
OWN = """
import droptune as dt
import torch
from torch import nn

def train(model, *, seed, device):
    yield {"val_loss": 1.0}

study = dt.Study(
    "own", model=lambda: nn.Linear(2, 2), train=train, example=torch.zeros(3, 2), epochs=1,
    trials=2, confirm_blocks=0,
)
"""
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DROPTUNE"))}


def run(*command: object, cwd: Path) -> str:
    """Run a command and return its stdout; fail with its stderr."""
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, env=CLEAN, capture_output=True, text=True)
    assert result.returncode == 0, f"{words}\n{result.stdout}{result.stderr}"
    return result.stdout


def build(target: str, source: Path, out: Path) -> Path:
    """Build "wheel" or "sdist" from `source` without a network, and return the file."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a fresh environment: the wheel, and this environment's libraries."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    binaries = home / "bin"
    pip = ("-m", "pip", "--python", binaries / "python", "install", "--quiet", "--no-index")
    run(sys.executable, *pip, "--no-deps", wheel, cwd=home)
    libraries = sysconfig.get_path("purelib", vars={"base": str(home)})
    # A plain line in a .pth file: an editable droptune of this environment stays out of sight.
    (Path(libraries) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


def names(wheel: Path) -> set[str]:
    """Return the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_module_and_every_migration(wheel):
    for folder, place in (("droptune", "droptune"), ("alembic", "droptune/_alembic")):
        sources = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")]
        assert sources
        assert {f"{place}/{path.as_posix()}" for path in sources} <= names(wheel)
    assert {"droptune/_alembic/env.py", "droptune/_alembic/script.py.mako"} <= names(wheel)
    assert any(name.startswith("droptune/_alembic/versions/0001") for name in names(wheel))


def test_the_wheel_has_nothing_else(wheel):
    tops = {name.split("/")[0] for name in names(wheel)}
    assert tops == {"droptune", f"droptune-{PROJECT['version']}.dist-info"}
    assert not [name for name in names(wheel) if "__pycache__" in name or name.endswith(".db")]


def test_the_licence_travels_along(wheel):
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names(wheel))


def test_a_wheel_built_from_the_sdist_is_the_same(wheel, tmp_path):
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert names(build("wheel", source, tmp_path / "again")) == names(wheel)


def test_the_installed_package_is_the_one_that_is_tested(installed, tmp_path):
    where = run(
        installed / "python", "-c", "import droptune; print(droptune.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_installed_command_gives_help_from_any_folder(installed, tmp_path):
    assert "optimize" in run(installed / "droptune", "--help", cwd=tmp_path)


def test_the_installed_command_finds_its_migrations(installed, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    store = ("--store", "sqlite:///x.db")
    run(installed / "droptune", "optimize", "own.py", "--quiet", *store, cwd=tmp_path)
    run(installed / "droptune", "db", "check", *store, cwd=tmp_path)
    script = (
        "import sqlite3; print(*sqlite3.connect('x.db').execute('select * from droptune_version'))"
    )
    assert "0003" in run(sys.executable, "-c", script, cwd=tmp_path)


def test_the_installed_package_knows_its_version(installed, tmp_path):
    script = "import droptune; print(droptune.__version__)"
    assert run(installed / "python", "-c", script, cwd=tmp_path).strip() == PROJECT["version"]


# The pins


def pins() -> dict[str, str]:
    """Return the versions in constraints.txt by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_is_pinned_inside_its_range():
    groups = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(line for group in groups for line in group)]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), text


def test_only_numbers_of_versions_stand_in_the_constraints():
    assert all(version[0].isdigit() for version in pins().values())
