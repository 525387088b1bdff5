"""Folders: whose they are, small files replaced whole, and what kind of disk they lie on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contio_pipeline.folders import network_file_system, private_file

MOUNTS = r"""overlay / overlay rw,relatime,lowerdir=/var/lib/l1:/var/lib/l2,upperdir=/u,workdir=/w 0 0
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
/dev/sda2 /srv ext4 rw,relatime 0 0
filer:/export/data /srv/nfs nfs4 rw,vers=4.2,proto=tcp,addr=10.0.0.7 0 0
/dev/sdb1 /srv/nfs/local xfs rw 0 0
//filer/my\040share /mnt/my\040share cifs rw,vers=3.1.1,username=ana 0 0
ana@host:/home /home/ana/far fuse.sshfs rw,user_id=1000 0 0
/dev/sdc1 /media/usb fuseblk rw 0 0
portal /run/user/1000/doc fuse.portal rw 0 0
10.0.0.7:/one /over nfs rw 0 0
tmpfs /over tmpfs rw 0 0
tmpfs /under tmpfs rw 0 0
10.0.0.7:/two /under nfs rw 0 0

broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/nfs", "nfs4"),
        ("/srv/nfs/contio/not/there/yet", "nfs4"),
        ("/srv/nfs/local/contio", None),
        ("/srv/nfs2/contio", None),
        ("/mnt/my share/contio", "cifs"),
        ("/home/ana/far/data", "fuse.sshfs"),
        ("/home/ana/near", None),
        ("/media/usb/data", None),
        ("/run/user/1000/doc/x", None),
        ("/over/data", None),
        ("/under/data", "nfs"),
        ("/", None),
    ],
)
def test_the_mount_that_a_folder_lies_on_says_what_it_is(path: str, kind: str | None, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert network_file_system(Path(path), tmp_path / "mounts") == kind


def test_a_link_to_a_network_file_system_is_one(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    (tmp_path / "data").symlink_to("/srv/nfs/contio")
    assert network_file_system(tmp_path / "data", tmp_path / "mounts") == "nfs4"


def test_where_the_system_has_no_such_table_nothing_is_known(tmp_path: Path) -> None:
    assert network_file_system(Path("/srv/nfs"), tmp_path / "not-there") is None


def test_a_private_file_is_its_owners_alone_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "facts.json"
    before = os.umask(0)
    try:
        private_file(path, "one")
    finally:
        os.umask(before)
    with path.open() as reader:
        private_file(path, "two")
        assert (reader.read(), path.read_text()) == ("one", "two")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with pytest.raises(UnicodeEncodeError):
        private_file(path, "\ud800")
    assert [entry.name for entry in path.parent.iterdir()] == ["facts.json"]
    assert path.read_text() == "two"
