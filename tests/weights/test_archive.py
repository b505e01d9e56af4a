import gzip
import io
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights.sagemaker_files import tar_bytes

from ssd_jax.errors import UserError
from ssd_jax.weights import archive
from ssd_jax.weights.archive import is_archive, read_archive

FILES = {"a.params": bytes(range(256)) * 5, "./deep/er/b.json": b"{}", "empty": b""}
TAR = tar_bytes(FILES, "w")


def read(tmp_path, data):
    path = tmp_path / "model.tar.gz"
    path.write_bytes(data)
    return {name: bytes(content) for name, content in read_archive(path).items()}


@pytest.mark.parametrize("data", [TAR, tar_bytes(FILES)], ids=["tar", "tar.gz"])
def test_regular_files_are_read_by_their_base_name(tmp_path, data):
    expected = {"a.params": FILES["a.params"], "b.json": b"{}", "empty": b""}
    assert read(tmp_path, data) == expected
    assert is_archive(tmp_path / "model.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_links_devices_folders_and_extended_headers_are_passed_over(tmp_path, kind):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, type_ in (("../up", tarfile.SYMTYPE), ("dev", tarfile.CHRTYPE), ("d", b"5")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = type_, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("ok")
        member.size, member.mtime, member.uname = 3, 1.5, "ü" * 200
        tar.addfile(member, io.BytesIO(b"abc"))
    assert read(tmp_path, stream.getvalue()) == {"ok": b"abc"}


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1024), b"\x12\x01" + bytes(600)])
def test_other_files_are_no_archives(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    assert not is_archive(tmp_path / "w")
    assert not is_archive(tmp_path / "nowhere")
    assert not is_archive(tmp_path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_LARGEST", 2**20)
    with pytest.raises(UserError, match="unpacks to more than"):
        read(tmp_path, gzip.compress(bytes(2**22)))


def test_more_members_than_any_artefact_has_are_refused(tmp_path):
    with pytest.raises(UserError, match="or there are too many"):
        read(tmp_path, tar_bytes({str(i): b"" for i in range(1001)}, "w"))


def test_two_files_of_one_name_are_refused_when_asked_for(tmp_path):
    path = tmp_path / "model.tar.gz"
    path.write_bytes(tar_bytes({"x/a": b"1", "y/a": b"2", "b": b"3"}))
    members = read_archive(path)
    assert bytes(members["b"]) == b"3"
    assert "a" in members
    for ask in (lambda: members["a"], lambda: members.pop("a"), lambda: dict(members)):
        with pytest.raises(UserError, match="damaged archive: two members are called a"):
            ask()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("data", [TAR.rstrip(b"\0"), tar_bytes(FILES)], ids=["tar", "tar.gz"])
def test_an_archive_cut_short_is_refused(tmp_path, data, kept):
    with pytest.raises(UserError, match="damaged archive"):
        read(tmp_path, data[: int(len(data) * kept)])


@pytest.mark.parametrize("data", [b"", gzip.compress(b"")], ids=["tar", "tar.gz"])
def test_an_archive_of_nothing_is_refused(tmp_path, data):
    with pytest.raises(UserError, match="damaged archive: the closing block is missing"):
        read(tmp_path, data)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 3000), new=st.binary(min_size=1, max_size=20))
def test_no_changed_archive_does_anything_else_than_be_read_or_refused(tmp_path, at, new):
    changed = bytearray(TAR)
    changed[at : at + len(new)] = new
    try:
        members = read(tmp_path, bytes(changed))
    except UserError:
        return
    assert sum(map(len, members.values())) <= len(changed)
