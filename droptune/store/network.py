"""Is a file on a network drive? SQLite must not be used there.

Its locks and the shared memory of its write-ahead log reach as far as one kernel: "all processes
using a database must be on the same host computer; WAL does not work over a network filesystem"
(https://sqlite.org/wal.html), and locks of network file systems are often not there at all
(https://sqlite.org/faq.html#q5). Several machines then write over each other, and the file is
damaged without an error (optuna/optuna#815, #5138). Only machines that share a drive can share
a file, so this is also how several machines on one SQLite file are noticed.
"""

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")

_KINDS = frozenset(
    """
    9p acfs afs afpfs beegfs ceph cephfs cifs coda curlftpfs davfs gfs gfs2 glusterfs gpfs kafs
    lustre mmfs moosefs ncpfs nfs nfs3 nfs4 ocfs2 orangefs panfs pvfs2 smb smb2 smb3 smbfs sshfs
    vboxsf virtiofs webdav wekafs
    """.split()
)
# Drives of programs in user space, as `fuse.sshfs`; those of local disks (fuseblk, fuse.ntfs-3g,
# fuse.mergerfs, fuse-overlayfs) are not among them.
_FUSE = frozenset(
    """
    beegfs blobfuse blobfuse2 ceph ceph-fuse cifs curlftpfs davfs2 gcsfuse glusterfs goofys gvfsd
    juicefs lizardfs moosefs mfs nfs onedriver rclone s3fs s3ql seaweedfs smbnetfs sshfs
    """.split()
)


def network_drive(path: Path, mounts: str | None = None) -> str | None:
    """Return the kind of the network drive that a path is on, or None if it is on none.

    Args:
        path: of a file, which may be missing; links are followed.
        mounts: a table of mounts as in /proc/self/mounts; None: this machine's. Where there is
            none (macOS, Windows) the answer is None.
    """
    if mounts is None:
        try:
            mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    kind = _kind(path.resolve(), mounts)
    return kind if kind is not None and _is_network(kind) else None


def _kind(path: Path, mounts: str) -> str | None:
    """Return the kind of the file system that a path is on: the deepest mount, the last of it."""
    found, depth = None, -1
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        place = Path(_unescaped(fields[1]))
        if path.is_relative_to(place) and len(place.parts) >= depth:
            found, depth = fields[2], len(place.parts)
    return found


def _is_network(kind: str) -> bool:
    kind, _, program = kind.lower().partition(".")
    return program in _FUSE if kind == "fuse" else kind in _KINDS


def _unescaped(field: str) -> str:
    """Return a field with its octal escapes (a space is 040 after a backslash) as characters."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
