"""Network drives are told from local ones by the table of mounts, and SQLite is refused there."""

from pathlib import Path

import pytest

from droptune.errors import StoreError
from droptune.store import Queries, Store, network
from droptune.store.migrate import check
from droptune.store.network import network_drive

MOUNTS = r"""
proc /proc proc rw,relatime 0 0
/dev/sda1 / ext4 rw,relatime 0 0
home:/export /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/local xfs rw 0 0
//server/share /mnt/my\040share cifs rw 0 0
ann@host:/ /mnt/ssh fuse.sshfs rw 0 0
/dev/sdc1 /mnt/stick fuseblk rw 0 0
merged /mnt/merged fuse.mergerfs rw 0 0
drive /mnt/Drive fuse.rclone rw 0 0
scratch@tcp:/scratch /scratch lustre rw 0 0
gpfs0 /gpfs gpfs rw 0 0
auto /auto autofs rw 0 0
server:/auto /auto nfs rw 0 0
tmpfs /tmp tmpfs rw 0 0
overlay /layer overlay rw 0 0
short line
"""


@pytest.mark.parametrize(
    ("path", "drive"),
    [
        ("/data/x.db", None),
        ("/home/ann/x.db", "nfs4"),
        ("/home/local/x.db", None),
        ("/homework/x.db", None),
        ("/mnt/my share/x.db", "cifs"),
        ("/mnt/ssh/a/b/x.db", "fuse.sshfs"),
        ("/mnt/stick/x.db", None),
        ("/mnt/merged/x.db", None),
        ("/mnt/Drive/x.db", "fuse.rclone"),
        ("/scratch/x.db", "lustre"),
        ("/gpfs/x.db", "gpfs"),
        ("/auto/x.db", "nfs"),  # mounted over the first, when it was looked at
        ("/tmp/x.db", None),
        ("/layer/../home/x.db", "nfs4"),
    ],
)
def test_the_drive_of_a_path(path, drive):
    assert network_drive(Path(path), MOUNTS) == drive


def test_a_link_is_followed(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    table = f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path}/here nfs rw 0 0"
    assert network_drive(tmp_path / "link" / "x.db", table) == "nfs"


def test_the_folder_of_this_test_is_local(tmp_path):
    assert network_drive(tmp_path / "x.db") is None


def test_a_machine_without_the_table_is_taken_as_local(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "MOUNTS", tmp_path / "none")
    assert network_drive(tmp_path / "x.db") is None


def test_sqlite_on_a_network_drive_is_refused_and_makes_no_file(url, tmp_path, monkeypatch):
    table = tmp_path / "mounts"
    table.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs rw 0 0\n")
    monkeypatch.setattr(network, "MOUNTS", table)
    with pytest.raises(StoreError) as caught:
        Store(url)
    said = str(caught.value)
    assert said.startswith(f"{url} is on a network drive (nfs)")
    assert "local disk" in said and "postgresql://" in said
    assert "\n" not in said
    assert not (tmp_path / "droptune.db").exists()


def test_what_is_there_already_can_still_be_read(url, tmp_path, monkeypatch, examples):
    with Store(url) as store:
        examples.new_study(store)
    monkeypatch.setattr("droptune.store.engine.network_drive", lambda path: "nfs")
    with Queries(url) as queries:
        assert queries.studies()[0]["name"] == "mine"
    with pytest.raises(StoreError, match="network drive"):
        check(url)
