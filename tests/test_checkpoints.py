"""droptune/checkpoints.py: files that survive a death, hold every tensor, and execute nothing."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from droptune import checkpoints
from droptune.checkpoints import Checkpoints
from droptune.errors import StoreError
from droptune.trainers import Saved

ROOT = Path(__file__).parents[1]


def saved(value: float = 1.0) -> Saved:
    return Saved({"w": torch.full((3, 2), value)}, {"value": value, "slots": {"3": None}})


@pytest.fixture
def kept(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "kept")


def value(kept: Checkpoints, name: str = "w1") -> float | None:
    found = kept.load(name)
    if found is None:
        return None
    assert (found[0].tensors["w"] == found[0].rest["value"]).all()
    assert found[1] == {"epoch": found[0].rest["value"]}
    return found[0].rest["value"]


def filled(kept: Checkpoints, count: int = 2, name: str = "w1") -> Path:
    for number in range(1, count + 1):
        kept.save(name, saved(float(number)), {"epoch": float(number)})
    return kept.folder / name


# What comes back


def test_the_newest_comes_back_and_two_are_kept(kept):
    assert kept.load("w1") is None and kept.names() == []
    place = filled(kept, 5)
    assert value(kept) == 5.0
    names = sorted(path.name for path in place.iterdir())
    assert names == [f"00000{n}.{e}" for n in (4, 5) for e in ("json", "safetensors")]


def test_names_are_kept_apart(kept):
    filled(kept, 1, "a"), filled(kept, 2, "b-1.x_Y")
    assert kept.names() == ["a", "b-1.x_Y"]
    assert value(kept, "a") == 1.0 and value(kept, "b-1.x_Y") == 2.0
    kept.drop("b-1.x_Y"), kept.drop("never")
    assert kept.names() == ["a"] and kept.load("b-1.x_Y") is None
    kept.drop("a")
    assert not kept.folder.exists(), "nothing is left behind"
    filled(kept, 1, "a")
    assert value(kept, "a") == 1.0


DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.float8_e5m2),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_survives(kept, dtype):
    tensors = {
        str(shape): (torch.rand(shape) * 9).to(dtype)
        for shape in ((), (1,), (0, 3), (2, 3), (2, 1, 3, 2))
    }
    kept.save("w", Saved(tensors, {}), {})
    found = kept.load("w")[0].tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype and found[name].shape == tensor.shape
        assert found[name].tolist() == tensor.tolist()


def test_views_and_tensors_that_share_memory_survive_each_by_itself(kept):
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        **{"whole": base, "twin": base, "turned": base.t(), "row": base[1], "cell": base[1, 2]},
        **{"steps": base[:, ::2], "wide": torch.ones(()).expand(3, 4), "flip": base[2:, 3:]},
        "nhwc": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "trained": torch.nn.Parameter(torch.rand(3)),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    kept.save("w", Saved(tensors, {}), {})
    found = kept.load("w")[0].tensors
    for name, tensor in before.items():
        assert torch.equal(found[name].nan_to_num(7), tensor.nan_to_num(7)), name
    found["whole"].zero_()
    assert torch.equal(found["twin"], base) and torch.equal(base, before["whole"])


def test_keys_that_are_numbers_come_back_as_text(kept):
    rest = {"b": {10: 1, 9: [None, True, 0.1, float("inf")]}, "a": "é\n"}
    kept.save("w", Saved({}, rest), {"n": {2: {}}})
    found, about = kept.load("w")
    assert found.rest == {"b": {"10": 1, "9": [None, True, 0.1, float("inf")]}, "a": "é\n"}
    assert about == {"n": {"2": {}}}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_tensors_of_a_gpu_come_back_on_the_cpu(kept):
    kept.save("w", Saved({"w": torch.arange(5, device="cuda")}, {}), {})
    assert torch.equal(kept.load("w")[0].tensors["w"], torch.arange(5))


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[-9] ^= 1
    path.write_bytes(text)


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(checkpoints.MOST_JSON + 1)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [cut, flip, huge, pipe, folder, Path.unlink, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_damaged_one_is_passed_over_for_the_older(kept, damage, ending):
    place = filled(kept)
    damage(place / f"000002.{ending}")
    assert value(kept) == 1.0
    damage(place / f"000001.{ending}")
    assert kept.load("w1") is None
    filled(kept, 1)
    assert value(kept) == 1.0, "and a new one can be written"


def test_a_number_that_was_changed_in_the_json_is_damage(kept):
    path = filled(kept) / "000002.json"
    path.write_text(path.read_text().replace("2.0", "7.0"))
    assert value(kept) == 1.0


def test_one_of_a_newer_droptune_is_passed_over(kept):
    path = filled(kept) / "000002.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert value(kept) == 1.0


def header(text: bytes, more: bytes = b"\0" * 8) -> bytes:
    return struct.pack("<Q", len(text)) + text + more


LIES = {
    "a size": struct.pack("<Q", 2**62) + b"{}",
    "no header": struct.pack("<Q", 99_000_000) + b"{}",
    "a shape": header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,8]}}'),
    "an overflow": header(b'{"a":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,8]}}'
                          % (2**64 - 1, 2**64 - 1)),
    "offsets": header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'),
    "a dtype": header(b'{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}'),
    "no object": header(b"[]"),
    "depth": header(b'{"a":' + b"[" * 1_000_000),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_under_a_right_checksum_is_damaged_and_runs_nothing(
    kept, lie, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    place = filled(kept)
    (place / "000002.safetensors").write_bytes(LIES[lie])
    sign(place / "000002")
    assert value(kept) == 1.0
    assert not (tmp_path / "owned").exists()


def sign(path: Path, **content) -> None:
    """Give a forged checkpoint the checksums that it would have."""
    document = json.loads(path.with_suffix(".json").read_text())
    tensors = path.with_suffix(".safetensors").read_bytes()
    forged = {
        **document["content"],
        "tensors": checkpoints.hashlib.sha256(tensors).hexdigest(),
        **content,
    }
    document |= {"content": forged, "sha256": checkpoints._digest(forged)}
    path.with_suffix(".json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "content", [{"rest": []}, {"about": 3}, {"tensors": None}, {"tensors": ["x"]}]
)
def test_json_of_another_form_is_damaged(kept, content):
    place = filled(kept)
    sign(place / "000002", **content)
    assert value(kept) == 1.0


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, "[]", "null", '{"content": 1}', "\xff"]
)
def test_json_that_strains_its_reader_is_damaged(kept, text):
    (filled(kept) / "000002.json").write_text(text, "latin-1")
    assert value(kept) == 1.0


# Names and links


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../a", "/etc", "a\\b", "a..b", "a b", "a\n", "a\0", "é",
     "x" * 129, None, 3],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused(kept, name, tmp_path):
    for act in (kept.load, kept.drop, lambda name: kept.save(name, saved(), {})):
        with pytest.raises(StoreError, match="a name has letters") as error:
            act(name)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_link_is_refused_and_not_listed(kept, tmp_path):
    victim = filled(Checkpoints(tmp_path / "other"))
    kept.folder.mkdir()
    (kept.folder / "w1").symlink_to(victim, target_is_directory=True)
    for act in (kept.load, kept.drop, lambda name: kept.save(name, saved(), {})):
        with pytest.raises(StoreError, match="is a link, which may lead anywhere; remove it"):
            act("w1")
    assert kept.names() == [] and len(list(victim.iterdir())) == 4


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_file_that_is_a_link_is_damaged(kept, ending, tmp_path):
    place = filled(kept)
    path = place / f"000002.{ending}"
    path.replace(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert value(kept) == 1.0


def test_what_links_point_to_is_not_written(kept, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    place = filled(kept)
    (place / "000003.json").symlink_to(victim)
    for name in ("000004.json", "000004.safetensors"):
        (place / f".{name}.part").symlink_to(victim)
    kept.save("w1", saved(9.0), {"epoch": 9.0})
    assert value(kept) == 9.0 and victim.read_text() == "mine"


def test_what_a_dead_writer_left_is_removed(kept):
    place = filled(kept)
    for name in (".tmpXYZ", ".000003.json.part", "000003.safetensors"):
        (place / name).write_text("half")
    assert value(kept) == 2.0
    kept.save("w1", saved(4.0), {"epoch": 4.0})
    names = sorted(path.name for path in place.iterdir())
    assert names == [f"00000{n}.{e}" for n in (2, 4) for e in ("json", "safetensors")]


def test_each_file_is_on_the_disk_before_it_has_its_name(kept, monkeypatch):
    done, sync, rename = [], os.fsync, Path.replace

    def synced(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(path, target):
        done.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    filled(kept, 1)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    kept.save("w1", saved(), {})
    assert done == [
        step
        for name in ("000002.safetensors", "000002.json")
        for step in (f".{name}.part", f".{name}.part -> {name}", "w1")
    ]


def test_the_folder_itself_may_be_a_link_that_the_user_made(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").symlink_to(tmp_path / "disk", target_is_directory=True)
    kept = Checkpoints(tmp_path / "kept")
    filled(kept)
    assert value(kept) == 2.0 and kept.names() == ["w1"]


def test_others_on_this_machine_cannot_read_the_files(kept):
    assert filled(kept).stat().st_mode & 0o077 == 0


# Failing and dying


@pytest.mark.parametrize("call", ["save_file", "_write_json", "_rename", "_sync_folder"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the disk is full; free some space, or set DROP"),
        (PermissionError(13, "Permission denied"), "this user may not; allow reading and writing"),
        (checkpoints.SafetensorError("I/O error: No space (os error 28)"), "the disk is full"),
        (OSError(5, "Input/output error"), r"\[Errno 5\].*; check that folder, or set DROPTUNE_CH"),
    ],
)
def test_a_disk_that_fails_is_told_in_one_line_and_leaves_the_older_ones(
    kept, monkeypatch, call, error, message
):
    place = filled(kept)
    before = sorted(place.iterdir())

    def fail(*_, **__):
        (place / ".tmp123").write_text("what safetensors leaves")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, call, fail)
        with pytest.raises(StoreError, match=message) as told:
            kept.save("w1", saved(3.0), {"epoch": 3.0})
    assert "\n" not in str(told.value) and str(place) in str(told.value)
    assert sorted(place.iterdir()) == before
    assert value(kept) == 2.0
    kept.save("w1", saved(3.0), {"epoch": 3.0})
    assert value(kept) == 3.0


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        kept = Checkpoints(disk)
        filled(kept)
        before = sorted((disk / "w1").iterdir())
        with pytest.raises(StoreError, match="the disk is full; free some space"):
            kept.save("w1", Saved({"w": torch.zeros(400_000)}, {}), {})
        with pytest.raises(StoreError, match="the disk is full; free some space"):
            kept.save("w1", Saved({}, {"text": "x" * 1_500_000}), {})
        assert sorted((disk / "w1").iterdir()) == before and value(kept) == 2.0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (Saved({}, {"x": object()}), "object is not JSON serializable"),
        (Saved({"w": torch.zeros(1, dtype=torch.complex128)}, {}), "complex128"),
        (Saved({"w": torch.eye(2).to_sparse()}, {}), "cannot hold what the trainer saves"),
        (Saved({}, {"x": "x" * (checkpoints.MOST_JSON + 1)}), "at most 67108864 are read"),
    ],
)
def test_what_no_file_can_hold_is_told_in_one_line(kept, what, message):
    filled(kept)
    with pytest.raises(StoreError, match=message) as error:
        kept.save("w1", what, {})
    assert "\n" not in str(error.value) and value(kept) == 2.0


WRITER = """
import sys, torch
from droptune.checkpoints import Checkpoints
from droptune.trainers import Saved
kept, number = Checkpoints(sys.argv[1]), 0.0
while True:
    number += 1
    saved = Saved({"w": torch.full((300, 2), number)}, {"value": number})
    kept.save("w1", saved, {"epoch": number})
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_checkpoint_no_older_than_it_said(kept):
    for delay in (0.01, 0.023, 0.037):
        command = [sys.executable, "-c", WRITER, str(kept.folder)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            writer.stdout.readline()
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
            said = [float(line) for line in writer.stdout.read().split()]
        assert value(kept) >= max(said, default=1.0)
        kept.save("w1", saved(0.0), {"epoch": 0.0})
        assert value(kept) == 0.0
        assert len(list((kept.folder / "w1").iterdir())) == 4
