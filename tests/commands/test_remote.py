"""Extraction from an object store: a real S3 server and a web server on this machine."""

import csv
import itertools
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from command_line import Vtnpipe
from moto.server import ThreadedMotoServer
from numbered_videos import number_of_blocks, write_video
from vtnpipe.extract.decode import remote as remote_module
from vtnpipe.extract.decode.remote import Remote, check_allowed, fetched, remote_state
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.feature_store import open_features

OWN = ("--backbone", "toy_backbones:block_means", "--weights", "none", "--workers", 2)
NAMES = "abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket `videos`; the processes of a test use its server."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "TMPDIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("videos")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


def _upload(bucket: Any, folder: Path, names: str = NAMES) -> None:
    for number, name in enumerate(names):
        path = write_video(folder / "video.mp4", 30, first=1000 * number)
        bucket.upload_file(str(path), f"set/{name}.mp4")


def _manifest(folder: Path, names: str = NAMES) -> None:
    rows = "".join(f"{name},s3://videos/set/{name}.mp4,x,train\n" for name in names)
    (folder / "m.csv").write_text("video_id,path,label,split\n" + rows)


def _numbers(folder: Path, name: str) -> list[int]:
    features = open_features(folder)[name].features.astype(float)
    return [number_of_blocks(row) for row in features]


def _failures(folder: Path) -> dict[str, str]:
    with (folder / "failures.csv").open() as file:
        return {
            row["video_id"]: f"{row['reason']}: {row['message']}" for row in csv.DictReader(file)
        }


@pytest.mark.slow
def test_videos_of_a_bucket(tmp_path: Path, bucket: Any, vtnpipe: Vtnpipe) -> None:
    _upload(bucket, tmp_path)
    _manifest(tmp_path, f"{NAMES}z")  # the last one does not exist
    ran = vtnpipe("extract", "m.csv", "f", *OWN, code=1)
    assert set(_failures(tmp_path / "f")) == set(f"{NAMES}z")
    assert "--allow-remote" in ran.stdout

    allowed = ("--allow-remote", "s3://videos/set")
    vtnpipe("extract", "m.csv", "g", *OWN, *allowed, "--cache", "cache", code=1)
    for number, name in enumerate(NAMES):
        assert _numbers(tmp_path / "g", name) == list(range(1000 * number, 1000 * number + 30))
    (failure,) = _failures(tmp_path / "g").values()
    assert failure == "missing: s3://videos/set/z.mp4: no such object; correct the URL"
    assert len(list((tmp_path / "cache").glob("*.mp4"))) == len(NAMES)

    path = write_video(tmp_path / "video.mp4", 10, first=9000)
    bucket.upload_file(str(path), "set/z.mp4")  # a missing video is tried again
    vtnpipe("extract", "m.csv", "g", *OWN, *allowed, "--cache", "cache")
    assert _numbers(tmp_path / "g", "z") == list(range(9000, 9010))

    bucket.upload_file(str(path), "set/a.mp4")  # a changed object
    ran = vtnpipe("extract", "m.csv", "g", *OWN, *allowed, code=2)
    assert "video_id 'a' was extracted from s3://videos/set/a.mp4" in ran.stderr
    vtnpipe("extract", "m.csv", "g", *OWN, *allowed, "--redo-changed")
    assert _numbers(tmp_path / "g", "a") == list(range(9000, 9010))
    assert (tmp_path / f"vtnpipe-cache-{os.getuid()}").is_dir()  # by default in TMPDIR


@pytest.mark.slow
def test_a_cache_that_holds_one_video_at_a_time(
    tmp_path: Path, bucket: Any, vtnpipe: Vtnpipe
) -> None:
    _upload(bucket, tmp_path)
    path = write_video(tmp_path / "large.mp4", 400, gop=1)
    bucket.upload_file(str(path), "set/large.mp4")
    _manifest(tmp_path)
    with (tmp_path / "m.csv").open("a") as file:
        file.write("large,s3://videos/set/large.mp4,x,train\n")
    sizes = [one.size for one in bucket.objects.all()]
    most = 1.5 * sorted(sizes)[-2]
    assert most < max(sizes)
    cache = ("--cache", "cache", "--cache-gib", most / 2**30)
    vtnpipe("extract", "m.csv", "f", *OWN, "--allow-remote", "s3://videos", *cache, code=1)
    assert set(open_features(tmp_path / "f")) == set(NAMES)
    (failure,) = _failures(tmp_path / "f").values()
    assert failure.startswith("too-large: s3://videos/set/large.mp4: ")
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.mp4")) <= most


def test_urls_are_allowed_by_whole_names() -> None:
    remote = Remote(allowed=("s3://videos/set", "https://host/"))
    for url in ("s3://videos/set/a.mp4", "https://host/x/y.mp4"):
        check_allowed(url, remote)
    for url in (
        "s3://videos/settings/a.mp4",
        "s3://videos/set/../a.mp4",
        "s3://other/a.mp4",
        "http://host/a.mp4",
        "https://host.evil/a.mp4",
        "file:///etc/passwd",
        "s3://videos/set/a.zip::file://x",
    ):
        with pytest.raises(VideoError) as caught:
            check_allowed(url, remote)
        assert caught.value.reason == "refused"


class _Web:
    """A web server whose answers are a list of (status, body, stated length)."""

    def __init__(self, answers: list[tuple[int, bytes, int]]) -> None:
        self.num_downloads = 0
        web, rest = self, itertools.chain(answers, itertools.repeat(answers[-1]))

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(answers[-1][2]))
                self.send_header("ETag", "x")
                self.end_headers()

            def do_GET(self) -> None:
                web.num_downloads += 1
                status, body, length = next(rest)
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.send_header("ETag", "x")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v/a.mp4"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "_Web":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def _remote(cache: Path, max_bytes: int = 10**6) -> Remote:
    return Remote(allowed=("http://127.0.0.1:",), cache=str(cache), max_bytes=max_bytes)


BODY = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("answers", "is_read"),
    [
        ([(503, b"busy", 4), (200, BODY, len(BODY))], True),
        ([(200, BODY[:-9], len(BODY)), (200, BODY, len(BODY))], True),
        ([(503, b"busy", 4), (503, b"busy", len(BODY))], False),
        ([(200, BODY[:-9], len(BODY))], False),
    ],
)
def test_a_download_that_fails_has_one_more_try(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[tuple[int, bytes, int]],
    is_read: bool,
) -> None:
    monkeypatch.setattr(remote_module, "check_allowed", lambda url, remote: None)
    with _Web(answers) as web:
        if is_read:
            for _ in range(2):  # the second time from the cache
                with fetched(web.url, _remote(tmp_path), lambda: None) as path:
                    assert Path(path).read_bytes() == BODY
                    assert path.endswith(".mp4")
        else:
            with (
                pytest.raises(VideoError, match="cannot be fetched") as caught,
                fetched(web.url, _remote(tmp_path), lambda: None),
            ):
                pass
            assert caught.value.reason == "missing"
        assert web.num_downloads == 2
    assert not list(tmp_path.glob("*.part"))


def test_an_object_that_changes_while_it_is_fetched(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _upload(bucket, tmp_path, "ab")
    url = "s3://videos/set/a.mp4"
    remote = Remote(allowed=("s3://videos",), cache=str(tmp_path / "c"), max_bytes=10**7)
    before = remote_state(url, remote)
    changed = []

    def change() -> None:
        if not changed:
            bucket.copy({"Bucket": "videos", "Key": "set/b.mp4"}, "set/a.mp4")
            changed.append(True)

    with fetched(url, remote, change) as path:
        found = Path(path).read_bytes()
    assert found == bucket.Object("set/b.mp4").get()["Body"].read()
    assert remote_state(url, remote) != before
    assert len(list((tmp_path / "c").glob("*.mp4"))) == 1


def test_a_file_in_use_is_not_removed(tmp_path: Path, bucket: Any) -> None:
    """A thread that needs its room waits until it is given back."""
    _upload(bucket, tmp_path, "ab")
    size = max(one.size for one in bucket.objects.all())
    remote = Remote(allowed=("s3://videos",), cache=str(tmp_path / "c"), max_bytes=size + 10)
    order: list[str] = []

    def read_b() -> None:
        with fetched("s3://videos/set/b.mp4", remote, lambda: None):
            order.append("b")

    with fetched("s3://videos/set/a.mp4", remote, lambda: None) as path:
        thread = threading.Thread(target=read_b)
        thread.start()
        time.sleep(1.5)
        assert Path(path).exists()
        order.append("a")
    thread.join(20)
    assert order == ["a", "b"]
    assert not Path(path).exists()
    np.testing.assert_array_less(
        sum(one.stat().st_size for one in (tmp_path / "c").glob("*.mp4")), size + 11
    )


def test_a_cache_of_another_user_is_not_used(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = os.getuid()
    monkeypatch.setattr(remote_module, "default_cache", lambda: tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    remote = Remote(allowed=("s3://videos",), max_bytes=10**6)
    with (
        pytest.raises(VideoError, match="belongs to another user; give --cache"),
        fetched("s3://videos/a.mp4", remote, lambda: None),
    ):
        pass
