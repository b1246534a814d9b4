"""Downloads from servers that break off, and archives that mean harm."""

import hashlib
import io
import json
import os
import shutil
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
import download
from download import fetch

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `files` with ranges; `break_after` bytes it breaks off, some times."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def answer(self, status, body=b"", length=None, **headers):
        """Send a whole answer, or one that promises more than comes."""
        self.send_response(status)
        headers["Content-Length"] = len(body) if length is None else length
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        """Answer as the server's settings say."""
        site, asked = self.server, self.headers.get("Range")
        site.ranges_asked.append(asked)
        content = site.files.get(self.path.lstrip("/"))
        if site.statuses or content is None:
            return self.answer(site.statuses.pop(0) if site.statuses else 404)
        start, status, headers = 0, 200, {}
        if asked is not None and site.ranges:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            where = f"{start}-{len(content) - 1}" if start < len(content) else "*"
            headers = {"Content_Range": f"bytes {where}/{len(content)}"}
        if start >= len(content):
            return self.answer(416, **headers)
        body, length = content[start:], len(content) - start
        if site.breaks > 0:
            site.breaks -= 1
            body, self.close_connection = body[: site.break_after], True
        self.answer(status, body, length, **headers)


@pytest.fixture
def site(monkeypatch):
    """A local server; its `url(name)` is that of a file."""
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.ranges_asked, server.statuses = {"a.bin": CONTENT}, [], []
    server.ranges, server.breaks, server.break_after = True, 0, 30_000
    server.url = lambda name: f"http://127.0.0.1:{server.server_port}/{name}"
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_broken_transfer_goes_on_where_it_stopped(site, tmp_path):
    site.breaks = 3
    assert fetch(site.url("a.bin"), tmp_path / "a.part") is False
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    assert site.ranges_asked == [None, *(f"bytes={n}0000-" for n in (3, 6, 9))]
    assert os.listdir(tmp_path) == ["a.part"]


def test_an_interrupted_download_goes_on_in_the_next_call(site, tmp_path):
    part = tmp_path / "a.part"
    site.breaks, site.break_after = 99, 0
    with pytest.raises(ValueError, match="run again to go on"):
        fetch(site.url("a.bin"), part)
    part.write_bytes(CONTENT[:1000])
    site.breaks = 0
    assert fetch(site.url("a.bin"), part) is True
    assert part.read_bytes() == CONTENT and site.ranges_asked[-1] == "bytes=1000-"
    assert fetch(site.url("a.bin"), part) is True  # whole already: 416
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "ranges, beginning", [(False, b"x" * 500), (True, CONTENT + b"more")]
)
def test_a_part_that_cannot_be_continued_is_fetched_anew(
    site, tmp_path, ranges, beginning
):
    part = tmp_path / "a.part"
    part.write_bytes(beginning)
    site.ranges = ranges
    fetch(site.url("a.bin"), part)
    assert part.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(site, tmp_path):
    site.statuses = [503, 429]
    fetch(site.url("a.bin"), tmp_path / "a.part")
    assert len(site.ranges_asked) == 3
    with pytest.raises(ValueError, match="404"):
        fetch(site.url("none.bin"), tmp_path / "b.part")
    assert len(site.ranges_asked) == 4


def test_no_server_and_a_disk_without_room_are_one_line(site, tmp_path):
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.part")
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


@pytest.fixture
def words(site, tmp_path):
    """A function of a source: the options of the command that fetches it."""

    def of(name="a.bin", **source):
        source = {"name": name, "url": site.url(name), **source}
        table = {"toy": {"files": [source], "corpus_dir": "."}}
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
        options = {"--corpus": "toy", "--sources": tmp_path / "sources.yaml"}
        options["--target"] = tmp_path / "t"
        return [str(word) for pair in options.items() for word in pair]

    return of


def test_a_published_hash_is_checked(site, words, tmp_path, capsys):
    download.main(words(sha256=HASH, size=len(CONTENT)))
    assert (tmp_path / "t/a.bin").read_bytes() == CONTENT
    assert f"--corpus_dir {tmp_path / 't'}" in capsys.readouterr().out
    download.main(words(sha256=HASH))
    assert len(site.ranges_asked) == 1  # not fetched again


@pytest.mark.parametrize(
    "wrong", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 7}]
)
def test_a_wrong_file_is_refused_and_removed(words, tmp_path, capsys, wrong):
    line = error_line(download.main, capsys, *words(hash_source="its page", **wrong))
    assert "expected" in line
    assert os.listdir(tmp_path / "t") in ([], [".downloads.json"])


def test_a_part_of_another_version_is_fetched_once_more(site, words, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.bin.part").write_bytes(b"x" * 1000)
    download.main(words(sha256=HASH))
    assert (tmp_path / "t/a.bin").read_bytes() == CONTENT
    assert site.ranges_asked == ["bytes=1000-", None]


def test_without_a_published_hash_the_first_one_seen_counts(words, tmp_path, capsys):
    download.main(words())
    record = json.loads((tmp_path / "t/.downloads.json").read_text())
    assert record["a.bin"]["sha256"] == HASH
    (tmp_path / "t/a.bin").write_bytes(b"changed")
    line = error_line(download.main, capsys, *words())
    assert "(the first download)" in line and "delete" in line


def test_a_file_that_its_server_makes_anew_may_change(words, tmp_path, caplog):
    download.main(words(md5="0" * 32, may_change=True))
    assert (tmp_path / "t/a.bin").exists() and "makes it anew" in caplog.text


def test_archives_are_unpacked_once_into_their_folder(site, words, tmp_path):
    site.files["x.tar.gz"] = make_tar([("./a/b.txt", b"b"), ("c.txt", b"c")])
    for _ in range(2):
        download.main(words("x.tar.gz", into="inside"))
        assert (tmp_path / "t/inside/a/b.txt").read_bytes() == b"b"
    assert len(site.ranges_asked) == 1
    assert not list((tmp_path / "t").glob(".unpack*"))


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Info-ZIP")
def test_a_zip_in_parts_is_joined_and_unpacked(site, words, tmp_path):
    files = {f"{index}.bin": os.urandom(9_000) for index in range(20)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = ["zip", "-q", "-s", "64k", "x.zip", *files]
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "t").mkdir()
    for part in tmp_path.glob("x.z*"):
        part.rename(tmp_path / "t" / part.name)
    download.main(words("x.zip", parts="x.z0?"))
    for name, content in files.items():
        assert (tmp_path / "t" / name).read_bytes() == content


def entry(name, kind, target=""):
    """A tar's entry that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ZIP_LINK = zipfile.ZipInfo("link")
ZIP_LINK.external_attr = 0o120777 << 16
EVIL = {
    "up": make_tar([("../out.txt", b"x")]),
    "absolute": make_tar([("/tmp/out.txt", b"x")]),
    "down and up": make_tar([("a/../../out.txt", b"x")]),
    "link": make_tar([entry("link", tarfile.SYMTYPE, "/etc/passwd")]),
    "hard link": make_tar([entry("hard", tarfile.LNKTYPE, "../../etc/passwd")]),
    "device": make_tar([entry("device", tarfile.CHRTYPE)]),
    "zip, up": make_zip([("../out.txt", b"x")]),
    "zip, absolute": make_zip([("/tmp/out.txt", b"x")]),
    "zip, backslash": make_zip([("..\\out.txt", b"x")]),
    "zip, drive": make_zip([("C:/out.txt", b"x")]),
    "zip, link": make_zip([(ZIP_LINK, b"/etc/passwd")]),
}


@pytest.mark.parametrize("content", EVIL.values(), ids=list(EVIL))
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
    corpora = {path.stem[5:] for path in LOCAL.glob("data_*.py")}
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
