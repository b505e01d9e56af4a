"""Object stores and web servers: what is staged is whole and right, or it is not there."""

import base64
import hashlib
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from loopback import CuttingProxy, WebServer
from s3_server import serve_s3

from ssd_jax.data import codes, remote, storage
from ssd_jax.data.storage import fetch, is_remote, read_bytes, stage, upload
from ssd_jax.errors import DataError, UserError

BIG = np.random.default_rng(0).bytes(1_000_000)
CHUNK = 100_000


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The folder of a bucket named `bucket`, the way to its server, and the proxy before it."""
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    with serve_s3(root) as environment:
        port = int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with CuttingProxy(port) as proxy:
            yield root / "bucket", environment | {"AWS_ENDPOINT_URL": proxy.url}, proxy


@pytest.fixture
def s3(bucket, monkeypatch):
    """The folder, fresh, and the proxy, with the environment that leads there."""
    import s3fs

    folder, environment, proxy = bucket
    lead_to(environment, monkeypatch)
    # Its own tries only make the tests slow.
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    put(folder, "set/big.rec", BIG)
    put(folder, "set/empty", b"")
    put(folder, "set/deep/one.txt", b"one")
    put(folder, "setting/other", b"not of the set")
    proxy.arm()
    return folder, proxy


@pytest.fixture
def s3_to_upload_to(tmp_path_factory, monkeypatch):
    """The folder of an empty bucket, into which nobody but its server writes."""
    root = tmp_path_factory.mktemp("uploads")
    (root / "bucket").mkdir()
    with serve_s3(root, filled_by_hand=False) as environment:
        lead_to(environment, monkeypatch)
        yield root / "bucket"


def lead_to(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def hasty(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "PAUSE", 0.001)
    monkeypatch.setattr(remote, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def web():
    with WebServer() as server:
        server.files["/set/big.rec"] = BIG
        yield server


def put(folder, key, content):
    (folder / key).parent.mkdir(parents=True, exist_ok=True)
    (folder / key).write_bytes(content)


def staged(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def refused(code, action, *arguments, **options):
    with pytest.raises(DataError) as found:
        action(*arguments, **options)
    assert found.value.code == code
    return str(found.value)


def test_what_is_remote():
    for location in ("s3://a/b", "gs://a", "https://a.b/c", "http://localhost/x"):
        assert is_remote(location)
    for location in ("s3", "/data/s3", pathlib.Path("data"), "tfds:voc/2007", "ftp://a/b"):
        assert not is_remote(location)


def test_an_object_is_staged_once_and_keeps_its_name(s3, tmp_path):
    path = stage("s3://bucket/set/big.rec")
    assert (path.name, path.read_bytes()) == ("big.rec", BIG)
    assert path.is_relative_to(tmp_path / "cache" / "s3" / "bucket" / "set")
    s3[1].arm()
    assert stage("s3://bucket/set/big.rec") == path
    assert s3[1].passed < 2000


def test_a_prefix_is_staged_as_a_folder(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "elsewhere"))
    folder = stage("s3://bucket/set")
    assert folder.name == "set"
    assert folder.is_relative_to(tmp_path / "elsewhere")
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert set(found) == {"big.rec", "empty", "deep/one.txt"}
    assert found["big.rec"].read_bytes() == BIG
    assert found["deep/one.txt"].read_bytes() == b"one"
    assert stage("s3://bucket/set/").name == "set"


def test_a_changed_object_gets_a_new_place(s3):
    first = stage("s3://bucket/set/deep/one.txt")
    put(s3[0], "set/deep/one.txt", b"two")
    second = stage("s3://bucket/set/deep/one.txt")
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")


@pytest.mark.parametrize("cuts", [1, 7])
def test_a_cut_connection_is_taken_up_again(s3, tmp_path, cuts):
    s3[1].arm(cuts=cuts, cut_after=1.5 * CHUNK)
    assert stage("s3://bucket/set/big.rec").read_bytes() == BIG
    assert s3[1].cuts == 0
    assert staged(tmp_path) == ["big.rec"]


def test_a_transfer_that_failed_leaves_no_whole_file_and_goes_on_later(s3, tmp_path):
    s3[1].arm(dead_after=3.5 * CHUNK)
    message = refused(codes.TRANSFER_FAILED, stage, "s3://bucket/set/big.rec")
    assert "s3://bucket/set/big.rec" in message
    (part,) = staged(tmp_path)
    assert part.startswith("big.rec.")
    assert part.endswith(".part")
    s3[1].arm()
    assert stage("s3://bucket/set/big.rec").read_bytes() == BIG
    assert s3[1].passed < len(BIG) - 2 * CHUNK
    assert staged(tmp_path) == ["big.rec"]


@pytest.mark.parametrize("length", [CHUNK, len(BIG), len(BIG) + 5])
def test_a_damaged_part_is_thrown_away(s3, tmp_path, length):
    s3[1].arm(dead_after=1.5 * CHUNK)
    refused(codes.TRANSFER_FAILED, stage, "s3://bucket/set/big.rec")
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(bytes(length))
    s3[1].arm()
    assert stage("s3://bucket/set/big.rec").read_bytes() == BIG
    assert staged(tmp_path) == ["big.rec"]


def test_a_wrong_checksum_is_refused_but_for_encrypted_objects(s3, tmp_path, monkeypatch):
    describe = remote.Bucket.describe
    wrong = ("md5", "0" * 32)
    monkeypatch.setattr(remote.Bucket, "describe", lambda *a: describe(*a)._replace(checksum=wrong))
    message = refused(codes.CONTENT_DISAGREES, stage, "s3://bucket/set/big.rec")
    assert f"its md5 is {hashlib.md5(BIG).hexdigest()}, expected 000" in message
    assert "big.rec" not in staged(tmp_path)

    import s3fs

    call = s3fs.S3FileSystem.call_s3

    def encrypted(files, method, **options):
        return call(files, method, **options) | {"ServerSideEncryption": "aws:kms"}

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", encrypted)
    assert stage("s3://bucket/set/big.rec").read_bytes() == BIG


def test_two_at_once_share_one_transfer(s3, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(stage, ["s3://bucket/set/big.rec"] * 2))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == BIG
    assert s3[1].passed < 1.5 * len(BIG)
    assert staged(tmp_path) == ["big.rec"]


def test_missing_objects(s3):
    for url in ("s3://bucket/nothing", "s3://nobucket/big.rec"):
        assert url in refused(codes.OBJECT_MISSING, stage, url)
        refused(codes.OBJECT_MISSING, read_bytes, url)
    refused(codes.OBJECT_MISSING, read_bytes, "s3://bucket/set")


def test_objects_that_stand_for_folders_are_left_out(s3, monkeypatch):
    import s3fs

    found = {f"bucket/set/{name}": {"type": "file", "size": 0} for name in ("", "x")}
    monkeypatch.setattr(s3fs.S3FileSystem, "find", lambda *_, **__: found)
    (only,) = remote.open_store("s3://bucket/set").list("s3://bucket/set")
    assert only.url == "s3://bucket/set/x"
    del found["bucket/set/x"]
    refused(codes.OBJECT_MISSING, stage, "s3://bucket/set")


def test_one_failure_stops_the_other_transfers(tmp_path, monkeypatch):
    sent = []

    class Store(remote.Bucket):
        def __init__(self):
            pass

        def describe(self, url):
            return None

        def list(self, url):
            return [remote.RemoteObject(f"s3://bucket/set/{name}", 2000, "v") for name in "ab"]

        def read(self, item, offset):
            if item.url.endswith("a"):
                raise FileNotFoundError
            return 0, self.slowly()

        def slowly(self):
            for _ in range(2000):
                time.sleep(0.001)
                sent.append(1)
                yield b"."

    monkeypatch.setattr(storage, "open_store", lambda _: Store())
    assert "/set/a" in refused(codes.OBJECT_MISSING, stage, "s3://bucket/set")
    assert len(sent) < 1000


def test_refused_credentials(s3, monkeypatch):
    # A client keeps the credentials that it began with.
    monkeypatch.setitem(remote._OPTIONS["s3"], "skip_instance_cache", True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONGSECRET")
    assert "AWS_SECRET_ACCESS_KEY" in refused(codes.ACCESS_REFUSED, stage, "s3://bucket/set")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    refused(codes.ACCESS_REFUSED, stage, "s3://bucket/set/big.rec")


@pytest.mark.parametrize("keys", [["set/../../x"], ["set/a\\b"], ["x" * 231], ["set/a", "set/a/b"]])
def test_keys_that_are_no_file_names_are_refused(s3, monkeypatch, tmp_path, keys):
    objects = [remote.RemoteObject(f"s3://bucket/{key}", 1, "v") for key in keys]
    monkeypatch.setattr(remote.Bucket, "list", lambda *_: objects)
    refused(codes.NAME_UNSAFE, stage, "s3://bucket/set")
    assert staged(tmp_path) == []


def test_read_bytes(s3, web, monkeypatch):
    for url in ("s3://bucket/set/big.rec", f"{web.url}/set/big.rec"):
        assert read_bytes(url) == BIG
    assert read_bytes("s3://bucket/set/empty") == b""
    s3[1].arm(cuts=1, cut_after=CHUNK // 2)
    assert read_bytes("s3://bucket/set/big.rec") == BIG
    web.cuts = [10**9, CHUNK]
    assert read_bytes(f"{web.url}/set/big.rec") == BIG
    monkeypatch.setattr(storage, "LARGEST_READ", len(BIG) - 1)
    refused(codes.CONTENT_DISAGREES, read_bytes, "s3://bucket/set/big.rec")


def test_uploads_come_back(s3_to_upload_to, tmp_path, monkeypatch):
    put(tmp_path, "run/a.bin", BIG)
    put(tmp_path, "run/b/c.txt", b"c")
    upload(tmp_path / "run", "s3://bucket/out/run")
    upload(tmp_path / "run/a.bin", "s3://bucket/out/alone")
    assert (s3_to_upload_to / "out/run/a.bin").read_bytes() == BIG
    assert (s3_to_upload_to / "out/run/b/c.txt").read_bytes() == b"c"
    assert (s3_to_upload_to / "out/alone").read_bytes() == BIG
    monkeypatch.setattr(remote.Bucket, "put", lambda *_: None)
    (tmp_path / "run/a.bin").write_bytes(b"shorter")
    refused(codes.TRANSFER_FAILED, upload, tmp_path / "run/a.bin", "s3://bucket/out/alone")
    with pytest.raises(UserError, match="expected s3:// or gs://"):
        upload(tmp_path / "run", "https://example.org/run")
    with pytest.raises(UserError, match="does not exist"):
        upload(tmp_path / "nothing", "s3://bucket/out")


def test_objects_that_were_stored_with_newer_checksums_are_staged_in_parts(s3_to_upload_to):
    import s3fs

    s3fs.S3FileSystem().pipe_file("bucket/out/checked", BIG)
    assert stage("s3://bucket/out/checked").read_bytes() == BIG


def test_web_files_resume_where_the_server_allows_it(web, tmp_path, monkeypatch):
    web.cuts = [10**9, 300_000, 300_000]
    assert stage(f"{web.url}/set/big.rec").read_bytes() == BIG
    assert web.ranges[:4] == [None, None, "bytes=300000-", "bytes=600000-"]
    web.with_ranges, web.cuts, web.ranges = False, [10**9, 300_000], []
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "b"))
    assert stage(f"{web.url}/set/big.rec").read_bytes() == BIG
    assert web.ranges == [None, None, "bytes=300000-", None]
    # Without a version, what is there may be the beginning of another file.
    web.with_ranges, web.with_versions, web.cuts, web.ranges = True, False, [10**9, 300_000], []
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "c"))
    assert stage(f"{web.url}/set/big.rec").read_bytes() == BIG
    assert web.ranges == [None, None, None, None]


def test_a_stream_that_ends_early_without_an_error_is_not_whole(web, monkeypatch):
    read = remote.WebServer.read

    def short(*arguments):
        start, chunks = read(*arguments)
        return start, (chunk[:300_000] for chunk in chunks)

    monkeypatch.setattr(remote.WebServer, "read", short)
    assert stage(f"{web.url}/set/big.rec").read_bytes() == BIG
    with pytest.raises(DataError, match="300000 of 1000000 bytes"):
        read_bytes(f"{web.url}/set/big.rec")


def test_a_signed_address_keeps_its_suffix_and_its_secret(web, tmp_path):
    path = stage(f"{web.url}/set/big.rec?signature=hidden")
    assert path.name == "big.rec"
    assert "hidden" not in str(path)
    url = web.url.replace("http://", "http://user:hidden@")
    message = refused(codes.OBJECT_MISSING, stage, f"{url}/missing?signature=hidden")
    assert "/missing" in message
    assert "hidden" not in message
    refused(codes.ACCESS_REFUSED, stage, f"{web.url}/secret")


def test_a_web_file_that_changes_meanwhile_is_refused(web, tmp_path, monkeypatch):
    read = remote.WebServer.read

    def changed(*arguments):
        web.files["/set/big.rec"] = bytes(len(BIG))
        return read(*arguments)

    monkeypatch.setattr(remote.WebServer, "read", changed)
    message = refused(codes.CONTENT_DISAGREES, stage, f"{web.url}/set/big.rec")
    assert "changed while it was read" in message
    assert "big.rec" not in staged(tmp_path)


def test_a_web_file_without_a_length_is_refused(web):
    web.with_length = False
    message = refused(codes.TRANSFER_FAILED, stage, f"{web.url}/set/big.rec")
    assert "the size of the file" in message


def test_fetch_verifies_size_and_checksum(web, tmp_path):
    path, sha256 = tmp_path / "big.rec", hashlib.sha256(BIG).hexdigest()
    url = f"{web.url}/set/big.rec"
    refused(codes.CONTENT_DISAGREES, fetch, url, path, size=7, sha256=sha256)
    refused(codes.CONTENT_DISAGREES, fetch, url, path, size=len(BIG), sha256="0" * 64)
    assert not path.exists()
    assert fetch(url, path, size=len(BIG), sha256=sha256).read_bytes() == BIG
    asked = len(web.ranges)
    fetch(url, path, size=len(BIG), sha256=sha256)
    assert len(web.ranges) == asked
    path.write_bytes(BIG[:-1] + b"?")
    refused(codes.CONTENT_DISAGREES, fetch, url, path, size=len(BIG), sha256=sha256)


def test_a_full_disk_is_told_before_the_transfer(web, monkeypatch):
    web.cuts = [10**9, 300_000] + [0] * storage.ATTEMPTS
    refused(codes.TRANSFER_FAILED, stage, f"{web.url}/set/big.rec")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"700,000 bytes .* 10 are free.* SSD_JAX_CACHE"):
        stage(f"{web.url}/set/big.rec")


def test_checksums_that_stores_tell():
    md5 = hashlib.md5(b"one")
    describe = remote._remote_object
    plain = describe("s3://b/k", {"ETag": f'"{md5.hexdigest()}"', "size": 3})
    assert plain == ("s3://b/k", 3, md5.hexdigest(), ("md5", md5.hexdigest()))
    assert describe("s3://b/k", {"ETag": f"{md5.hexdigest()}-2", "size": 3}).checksum is None
    google = {"etag": "CPD=", "md5Hash": base64.b64encode(md5.digest()).decode(), "size": "3"}
    assert describe("gs://b/k", google) == ("gs://b/k", 3, "CPD=", ("md5", md5.hexdigest()))
    assert describe("gs://b/k", {"etag": "CPD=", "size": 3}).checksum is None


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        read_bytes("gs://bucket/x")
    with pytest.raises(UserError, match="expected one of s3, gs"):
        stage("ftp://host/x")


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("SSD_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert storage.cache_folder() == pathlib.Path("/x/ssd_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert storage.cache_folder() == pathlib.Path.home() / ".cache" / "ssd_jax"
