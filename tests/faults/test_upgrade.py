"""A study that an older droptune had begun is upgraded and goes on, from any phase."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from droptune import cli
from tests.faults.whole import Seen, check_whole
from tests.small import Notes, fresh, study

HALF = Path(__file__).parents[1] / "assets" / "half_0002.db"


@pytest.mark.parametrize("name", ["searching", "confirming"])
def test_a_study_of_schema_0002_goes_on_after_the_upgrade(tmp_path, name):
    old = tmp_path / "old"
    old.mkdir()
    shutil.copyfile(HALF, old / "d.db")
    url = f"sqlite:///{old / 'd.db'}"
    done = CliRunner().invoke(cli.main, ["db", "upgrade", "--store", url])
    assert done.exit_code == 0, done.output
    assert "d.db.bak-0002" in done.output and (old / "d.db.bak-0002").is_file()
    begun = Seen(url, name).answer()["search"]
    study(url, name=name).optimize(progress=Notes())
    found = check_whole(url, name, 6).answer()
    new = fresh(tmp_path)
    study(new, name=name).optimize(progress=Notes())
    # Of schema 0002, trials that followed each other met the clock as it was.
    expected = Seen(new, name).answer()["search"] | begun
    assert begun and found["search"] == expected
    assert found["confirm"]
