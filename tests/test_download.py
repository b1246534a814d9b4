"""Downloads from servers that break off, and archives that mean harm."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from espnet2_sslam.unpack import unpack
from tests.corpus_case import LOCAL, error_line

sys.path.insert(0, str(LOCAL))
import download  # noqa: E402
from download import fetch  # noqa: E402

CONTENT = bytes(range(256)) * 400  # 102,400 bytes


class Handler(BaseHTTPRequestHandler):
    """Serves `files` with ranges; `break_after` bytes it breaks off, some times."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def do_GET(self):
        """Answer as the server's settings say."""
        site = self.server
        site.requests.append(dict(self.headers))
        if site.statuses:
            self.send_response(site.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = site.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        start = self._start(content)
        if start is not None and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if start is None else 206)
        if start is not None:
            where = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", where)
        body = content[start or 0 :]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.end_headers()
        if site.breaks > 0:
            site.breaks -= 1
            self.wfile.write(body[: site.break_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def _start(self, content):
        """First byte asked for, or None for all of the file."""
        wanted = self.headers.get("Range")
        version = self.headers.get("If-Range")
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        if wanted is None or not self.server.ranges or version not in (None, tag):
            return None
        return int(wanted.removeprefix("bytes=").rstrip("-"))


@pytest.fixture
def site(monkeypatch):
    """A local server; its `url(name)` is that of a file."""
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None  # a broken connection is meant
    server.files = {"a.bin": CONTENT}
    server.requests, server.statuses = [], []
    server.ranges, server.breaks, server.break_after = True, 0, 30_000
    server.url = lambda name: f"http://127.0.0.1:{server.server_port}/{name}"
    thread = threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ranges(site):
    """The Range header of each request."""
    return [request.get("Range") for request in site.requests]


def test_a_broken_transfer_goes_on_where_it_stopped(site, tmp_path):
    site.breaks = 3
    assert fetch(site.url("a.bin"), tmp_path / "a.part") is False
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]
    assert os.listdir(tmp_path) == ["a.part"]


def test_an_interrupted_download_goes_on_in_the_next_call(site, tmp_path, monkeypatch):
    part = tmp_path / "a.part"
    site.breaks, site.break_after = 99, 0
    with pytest.raises(ValueError, match="run again to go on"):
        fetch(site.url("a.bin"), part)
    part.write_bytes(CONTENT[:1000])
    site.breaks = 0
    assert fetch(site.url("a.bin"), part) is True
    assert part.read_bytes() == CONTENT and ranges(site)[-1] == "bytes=1000-"
    assert fetch(site.url("a.bin"), part) is True  # whole already: 416
    assert part.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(site, tmp_path):
    part = tmp_path / "a.part"
    part.write_bytes(b"x" * 500)
    site.ranges = False
    fetch(site.url("a.bin"), part)
    assert part.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(site, tmp_path):
    part = tmp_path / "a.part"
    part.write_bytes(CONTENT + b"more")
    fetch(site.url("a.bin"), part)
    assert part.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(site, tmp_path):
    site.statuses = [503, 429]
    fetch(site.url("a.bin"), tmp_path / "a.part")
    assert len(site.requests) == 3
    with pytest.raises(ValueError, match="404"):
        fetch(site.url("none.bin"), tmp_path / "b.part")
    assert len(site.requests) == 4


def test_a_server_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.0)
    with pytest.raises(ValueError, match="127.0.0.1"):
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.part")


def test_a_disk_without_room_is_one_line(site):
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(site.url("a.bin"), Path("/dev/full"))


def make_tar(entries, mode="w:gz"):
    """Bytes of a tar: (name, content) or TarInfo."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                file.addfile(info, io.BytesIO(entry[1]))
    return stream.getvalue()


def make_zip(entries):
    """Bytes of a zip: (name or ZipInfo, content)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return stream.getvalue()


def table(tmp_path, site, **source):
    """A table of sources with one file; its path."""
    source = {"name": "a.bin", "url": site.url(source.get("name", "a.bin")), **source}
    entry = {"files": [source], "corpus_dir": "."}
    path = tmp_path / "sources.yaml"
    path.write_text(yaml.safe_dump({"toy": entry}))
    return ["--corpus", "toy", "--sources", path, "--target", tmp_path / "t"]


def run(arguments):
    """Run the command."""
    download.main([str(word) for word in arguments])


def test_a_published_hash_is_checked(site, tmp_path, capsys):
    good = hashlib.sha256(CONTENT).hexdigest()
    run(table(tmp_path, site, sha256=good, size=len(CONTENT)))
    assert (tmp_path / "t/a.bin").read_bytes() == CONTENT
    assert f"--corpus_dir {tmp_path / 't'}" in capsys.readouterr().out
    count = len(site.requests)
    run(table(tmp_path, site, sha256=good))
    assert len(site.requests) == count  # not fetched again


@pytest.mark.parametrize(
    "wrong", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 7}]
)
def test_a_wrong_file_is_refused_and_removed(site, tmp_path, capsys, wrong):
    arguments = table(tmp_path, site, hash_source="its page", **wrong)
    line = error_line(download.main, capsys, *arguments)
    assert "expected" in line
    assert not (tmp_path / "t/a.bin").exists()


def test_a_part_of_another_version_is_fetched_once_more(site, tmp_path):
    good = hashlib.sha256(CONTENT).hexdigest()
    arguments = table(tmp_path, site, sha256=good)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.bin.part").write_bytes(b"x" * 1000)
    run(arguments)
    assert (tmp_path / "t/a.bin").read_bytes() == CONTENT
    assert ranges(site) == ["bytes=1000-", None]


def test_without_a_published_hash_the_first_one_seen_counts(site, tmp_path, capsys):
    run(table(tmp_path, site))
    record = json.loads((tmp_path / "t/.downloads.json").read_text())
    assert record["a.bin"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    (tmp_path / "t/a.bin").write_bytes(b"changed")
    line = error_line(download.main, capsys, *table(tmp_path, site))
    assert "(the first download)" in line and "delete" in line


def test_a_file_that_its_server_makes_anew_may_change(site, tmp_path, caplog):
    run(table(tmp_path, site, md5="0" * 32, may_change=True))
    assert (tmp_path / "t/a.bin").exists() and "makes it anew" in caplog.text


def test_archives_are_unpacked_once_into_their_folder(site, tmp_path, capsys):
    site.files["x.tar.gz"] = make_tar([("./a/b.txt", b"b"), ("c.txt", b"c")])
    arguments = table(tmp_path, site, name="x.tar.gz", into="inside")
    run(arguments)
    assert (tmp_path / "t/inside/a/b.txt").read_bytes() == b"b"
    run(arguments)
    assert len(site.requests) == 1
    assert not list((tmp_path / "t").glob(".unpack*"))


LINK = tarfile.TarInfo("link")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"
HARD = tarfile.TarInfo("hard")
HARD.type, HARD.linkname = tarfile.LNKTYPE, "../../etc/passwd"
DEVICE = tarfile.TarInfo("device")
DEVICE.type = tarfile.CHRTYPE
ZIP_LINK = zipfile.ZipInfo("link")
ZIP_LINK.external_attr = 0o120777 << 16


@pytest.mark.parametrize(
    "content",
    [
        make_tar([("../out.txt", b"x")]),
        make_tar([("/tmp/out.txt", b"x")]),
        make_tar([("a/../../out.txt", b"x")]),
        make_tar([LINK]),
        make_tar([HARD]),
        make_tar([DEVICE]),
        make_zip([("../out.txt", b"x")]),
        make_zip([("/tmp/out.txt", b"x")]),
        make_zip([("..\\out.txt", b"x")]),
        make_zip([("C:/out.txt", b"x")]),
        make_zip([(ZIP_LINK, b"/etc/passwd")]),
    ],
    ids="up abs in link hard device zip_up zip_abs zip_back zip_c zip_link".split(),
)
def test_evil_archives_are_refused_and_leave_nothing(tmp_path, content):
    (tmp_path / "evil").write_bytes(content)
    with pytest.raises(ValueError, match="not safe to unpack"):
        unpack(tmp_path / "evil", tmp_path / "target")
    assert os.listdir(tmp_path / "target") == []
    assert sorted(os.listdir(tmp_path)) == ["evil", "target"]


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_bombs_are_stopped(tmp_path, monkeypatch, make):
    unpack_module = sys.modules[unpack.__module__]
    monkeypatch.setattr(unpack_module, "SMALL_BYTES", 1 << 20)
    (tmp_path / "bomb").write_bytes(make([("zeros", bytes(4 << 20))]))
    with pytest.raises(ValueError, match="more than its size lets expect"):
        unpack(tmp_path / "bomb", tmp_path / "target")
    monkeypatch.setattr(unpack_module, "MAX_FILES", 10)
    (tmp_path / "many").write_bytes(make([(f"{i}", b"") for i in range(11)]))
    with pytest.raises(ValueError, match="more than 10 files"):
        unpack(tmp_path / "many", tmp_path / "target")
    assert os.listdir(tmp_path / "target") == []


def test_damaged_archives_and_full_places_are_named(tmp_path):
    path = tmp_path / "x.tar.gz"
    content = make_tar([(f"{i}.bin", os.urandom(5000)) for i in range(20)])
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="fetch it again"):
        unpack(path, tmp_path / "target")
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="fetch it again"):
        unpack(path, tmp_path / "target")
    path.write_bytes(make_tar([("a/b", b"b")]))
    (tmp_path / "target/a").mkdir()
    with pytest.raises(ValueError, match="there already"):
        unpack(path, tmp_path / "target")


def test_every_corpus_is_fetched_or_explained():
    entries = yaml.safe_load((LOCAL / "download.yaml").read_text())
    corpora = {path.stem[5:] for path in LOCAL.glob("data_*.sh")}
    assert corpora - set(entries) <= {"mini", "folder", "polyphony"}
    for name, entry in entries.items():
        assert entry["files"] or "explain" in entry, name
        for source in entry["files"]:
            assert source["url"].endswith((source["name"], "master.zip"))
            assert ("hash_source" in source) == ("md5" in source or "sha256" in source)


def test_the_script_explains_what_cannot_be_fetched(tmp_path):
    def run(*args):
        command = [LOCAL / "download.sh", *args]
        env = {**os.environ, "python": sys.executable}
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True
        )

    result = run("--corpus", "spass")
    assert result.returncode == 0 and "was not found" in result.stdout
    assert os.listdir(tmp_path) == []
    result = run("--corpus", "nothing")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
