"""The page of `sslam demo`: in parts, over HTTP, and in a real browser."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest

from espnet2_sslam.bin.sslam_demo import Listener, load_index
from espnet2_sslam.checkpoint import save_model
from tests.command_case import command
from tests.inference_case import CLASSES, classifier, encoder, noise, sslam, write

needs_matplotlib = pytest.mark.skipif(
    not importlib.util.find_spec("matplotlib"), reason="matplotlib is not installed"
)
needs_gradio = pytest.mark.skipif(
    not (importlib.util.find_spec("gradio") and importlib.util.find_spec("matplotlib")),
    reason="gradio or matplotlib is not installed",
)
needs_browser = pytest.mark.skipif(
    not (
        importlib.util.find_spec("selenium")
        and shutil.which("chromium")
        and shutil.which("chromedriver")
    ),
    reason="no Chromium here: selenium, chromium and chromedriver are needed",
)
# Of the server: writes down every address that is not this machine's.
WATCH = """
import os, socket
connect, look_up = socket.socket.connect, socket.getaddrinfo
def note(host):
    if str(host) not in ("127.0.0.1", "localhost", "::1", "None", "0.0.0.0"):
        with open(os.environ["WATCH_LOG"], "a") as log:
            print(host, file=log)
def watched(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        note(address[0])
    return connect(self, address)
def looked_up(host, *args, **options):
    note(host)
    return look_up(host, *args, **options)
socket.socket.connect, socket.getaddrinfo = watched, looked_up
"""
# What a careless environment could open.
OPEN = {
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_SHARE": "True",
    "GRADIO_ANALYTICS_ENABLED": "True",
    "GRADIO_MCP_SERVER": "True",
    "GRADIO_ROOT_PATH": "/elsewhere",
}
SECRET = "what nobody may read"


# --- its parts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three clips of 1, 2 and 25 s in `clips`, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for name, seconds in ("a", 1), ("b", 2), ("long", 25):
        write(f"clips/{name}.wav", noise(seconds, seed=round(seconds)))
    (tmp_path / "clips/broken.wav").write_bytes(b"RIFF")
    return tmp_path


@needs_matplotlib
def test_a_clip_becomes_scores_labels_and_events(folder, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    model = sslam(classifier())
    listener = Listener(model, None, 60, RuntimeError)
    heard, figure, labels = listener.hear("clips/b.wav")
    assert heard.scores.shape == (13, 4) and heard.ends[-1] == 2
    assert labels == dict(model.tag("clips/b.wav")) and len(figure.axes) == 4
    rows, paths = listener.find(heard, 0.3, 0.48)
    events = model.events("clips/b.wav", threshold=0.3, median=0.48)
    assert [row[2] for row in rows] == [event.label for event in events] and rows
    names = ["csv b.csv", "tsv b.tsv", "json b.json", "audacity b.txt"]
    names += ["raven b.Table.1.selections.txt"]
    assert [Path(path).name for path in paths] == names
    table = Path(paths[1]).read_text().splitlines()
    assert table[0].split("\t")[:4] == ["filename", "onset", "offset", "event_label"]
    assert len(table) == 1 + len(events) and table[1].startswith("b.wav\t")
    assert listener.find(None, 0.5, 0) == ([], [])
    assert listener.hear(None) == (None, None, None)


def test_the_folder_is_compared_by_windows_and_played(folder, capsys):
    model = sslam()
    index = load_index(model, "clips", 10)
    times = [
        (f, round(s), round(e))
        for f, s, e in zip(index.files, index.starts, index.ends, strict=True)
    ]
    windows = [("clips/long.wav", start, min(start + 10, 25)) for start in (0, 10, 20)]
    assert times == [("clips/a.wav", 0, 1), ("clips/b.wav", 0, 2), *windows]
    assert "left out: clips/broken.wav" in capsys.readouterr().err
    listener = Listener(model, index, 60, RuntimeError)
    write("part.wav", noise(25, seed=25)[160_000:320_000])
    matches, rows = listener.compare("part.wav")
    assert rows[0] == [1.0, "clips/long.wav", 10.0, 20.0] and len(rows) == 5
    rate, samples = listener.play(matches[0])
    expected = noise(25, seed=25)[160_000:320_000] * 32_767
    assert rate == 16_000 and np.abs(samples - expected).max() <= 2


def test_an_output_of_embed_is_taken_as_it_is(folder, capsys):
    save_model(encoder(), "model")
    command(capsys, "embed", "model", "clips/a.wav", "-o", "o.npz")
    assert len(load_index(sslam(), "o.npz", 10)) == 1
    with pytest.raises(ValueError, match="other weights"):
        load_index(sslam(encoder(seed=1)), "o.npz", 10)


@pytest.mark.parametrize(
    "name, seconds, words",
    [
        ("long.wav", 20, "the clip has 25.0 s, the page takes 20 s: cut it, or start"),
        ("broken.wav", 20, "broken.wav"),
        ("gone.wav", 20, "there is no such file"),
    ],
)
@needs_matplotlib
def test_a_clip_that_cannot_be_used_is_one_line(folder, name, seconds, words):
    class Said(Exception):
        def __init__(self, line, print_exception):
            super().__init__(line)

    listener = Listener(sslam(classifier()), None, seconds, Said)
    with pytest.raises(Said) as said:
        listener.hear(str(folder / "clips" / name))
    line = str(said.value)
    assert words in line and "\n" not in line and str(folder) not in line


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["model"], "model has no classes: name a FOLDER of clips to compare with"),
        (["model", "nothing"], "nothing"),
        (["model", "clips/broken.wav"], "none of 1 files could be used"),
    ],
)
@needs_gradio
def test_what_the_page_cannot_begin_with_is_one_line(folder, capsys, words, complaint):
    save_model(encoder(), "model")
    status, out, err = command(capsys, "demo", *words)
    assert (status, out) == (1, "") and complaint in err.splitlines()[-1]


# --- the command, over HTTP


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The running command; it ends by Ctrl-C, leaves no file and asks nobody."""
    folder = tmp_path_factory.mktemp("site")
    temporary, sound = folder / "tmp", folder / "clips"
    for path in (temporary, sound, folder / "watch"):
        path.mkdir()
    save_model(classifier(), folder / "model")
    for index in range(3):
        write(sound / f"<b>clip {index}.wav", noise(1 + index, seed=index))
    for path in (folder / "secret.txt", temporary / "secret.txt"):
        path.write_text(SECRET)
    write(folder / "secret.wav", noise(1))
    write(folder / "mine.wav", noise(2, seed=1))
    write(folder / "long.wav", noise(31, rate=8_000), 8_000)
    (folder / "watch/sitecustomize.py").write_text(WATCH)
    log = folder / "asked.txt"
    words = ["demo", "model", "clips", "--max_seconds", "30", "--max_mb", "1"]
    root = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        **OPEN,
        "PYTHONPATH": f"{folder / 'watch'}:{root}",
        "TMPDIR": str(temporary),
        "WATCH_LOG": str(log),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(folder / "log", "w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "espnet2_sslam.bin.sslam",
                *words,
                "--port",
                f"{port}",
            ],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            # a shell lets what runs in the background ignore Ctrl-C
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    try:
        while "the page is at" not in (printed := (folder / "log").read_text()):
            assert process.poll() is None, printed
            time.sleep(0.2)
        url = f"http://127.0.0.1:{port}"
        assert f"the page is at {url}" in printed
        yield SimpleNamespace(folder=folder, port=port, url=url)
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
    finally:
        process.kill()
        process.wait()
    printed = (folder / "log").read_text()
    refused = printed.count("InvalidPathError: ")  # by gradio, which says so at length
    assert (status, printed.count("Traceback")) == (0, refused), printed
    left = [path for path in temporary.rglob("*") if "torchinductor" not in str(path)]
    assert left == [temporary / "secret.txt"]
    assert not log.exists(), log.read_text()


def upload(site, path):
    """Send a file as the page does: where the server keeps it."""
    import httpx

    with open(path, "rb") as file:
        answer = httpx.post(f"{site.url}/gradio_api/upload", files={"files": file})
    return answer.json()[0] if answer.status_code == 200 else answer.status_code


def ask(site, number, *data):
    """Call a function of the page by its number: its output, or the error."""
    import httpx

    session = f"s{time.time_ns()}"
    body = {"data": data, "fn_index": number, "session_hash": session}
    joined = httpx.post(f"{site.url}/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    source = f"{site.url}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", source, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message["output"]
    raise AssertionError("no answer")


def clip_data(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


@pytest.mark.slow
@needs_gradio
def test_a_clip_is_heard_over_http(site):
    kept = upload(site, site.folder / "mine.wav")
    _, picture, labels = ask(site, 0, clip_data(kept))["data"]
    assert picture["plot"].startswith("data:image/png")
    assert {each["label"] for each in labels["confidences"]} == set(CLASSES)
    long = upload(site, site.folder / "long.wav")
    error = ask(site, 0, clip_data(long))["error"]
    assert error.startswith("the clip has 31.0 s, the page takes 30 s")


@pytest.mark.slow
@needs_gradio
def test_a_file_that_is_too_large_is_refused(site, tmp_path):
    assert upload(site, write(tmp_path / "large.wav", noise(40))) == 413


@pytest.mark.slow
@needs_gradio
@pytest.mark.parametrize("kind", ["text", "temporary", "weights", "clip", "system"])
def test_no_file_of_the_machine_is_read(site, kind):
    import httpx

    path = {
        "text": site.folder / "secret.txt",
        "temporary": site.folder / "tmp/secret.txt",
        "weights": site.folder / "model/model.safetensors",
        "clip": site.folder / "clips/<b>clip 0.wav",
        "system": Path("/etc/passwd"),
    }[kind]
    content = path.read_bytes()[:20]
    relative, up = os.path.relpath(path, site.folder), "../" * 12 + str(path)[1:]
    with httpx.Client(base_url=site.url, timeout=30) as client:
        for route in (
            "gradio_api/file=",
            "file=",
            "gradio_api/file/",
            "static/",
            "assets/",
            "gradio_api/static/",
            "theme/",
            "svelte/",
            "",
        ):
            for name in (
                str(path),
                relative,
                up,
                quote(up, safe=""),
                f"/{path}",
                f"file://{path}",
            ):
                answer = client.get(f"/{route}{quote(name, safe='/%')}")
                assert content not in answer.content, (route, name)
                assert answer.status_code != 200 or b"gradio" in answer.content
    for name in (path, relative, up):
        answer = ask(site, 0, clip_data(name))
        assert "data" not in answer and "error" in answer


@pytest.mark.slow
@needs_gradio
def test_the_page_is_for_this_machine_alone(site):
    import httpx

    with pytest.raises(OSError):  # it would answer there if it were bound to all
        socket.create_connection(("127.0.0.2", site.port), 2).close()
    foreign = httpx.get(site.url, headers={"Host": "foreign.example"})
    assert foreign.status_code == 400
    for path in (f"file={site.url}/", f"proxy={site.url}/"):
        assert httpx.get(f"{site.url}/gradio_api/{path}").status_code == 404
    policy = httpx.get(site.url).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")


# --- in a browser


@pytest.fixture
def browser(tmp_path):
    """Chromium without a network; what it asks for is written down."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new",
        "--no-sandbox",  # it refuses to be root's otherwise
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,1600",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    folders = {"download.default_directory": str(tmp_path)}
    options.add_experimental_option("prefs", folders)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def seen(browser, selector, text="", shown=True, seconds=60):
    """The first element that a selector finds and that has the text, waited for.

    `shown`: it must be visible; tables have a hidden copy of their rows.
    """
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for element in browser.find_elements("css selector", selector):
            try:
                content = element.get_attribute("textContent") or ""
                if text in content and (element.is_displayed() or not shown):
                    return element
            except StaleElementReferenceException:  # drawn anew meanwhile
                pass
        time.sleep(0.2)
    page = browser.find_element("tag name", "body").text
    raise AssertionError(f"no {selector} with {text!r}; the page: {page}")


@pytest.mark.slow
@needs_gradio
@needs_browser
def test_a_person_drops_a_clip_and_takes_the_events_home(site, browser, tmp_path):
    browser.get(site.url)
    seen(browser, "input[type=file]", shown=False).send_keys(
        str(site.folder / "mine.wav")
    )
    picture = seen(browser, "img[src^='data:image/png']")
    assert int(picture.get_attribute("naturalWidth")) > 800
    seen(browser, "[role=gridcell], td", "speech")
    neighbour = seen(browser, "[role=gridcell], td", "clips/<b>clip 2.wav")
    seen(browser, "a[download='csv mine.csv']").click()
    table = tmp_path / "csv mine.csv"
    end = time.monotonic() + 30
    while not table.exists() and time.monotonic() < end:
        time.sleep(0.2)
    header, *rows = table.read_text().splitlines()
    assert header == "filename,onset,offset,event_label,confidence" and rows
    events = sslam(classifier()).events(str(site.folder / "mine.wav"))
    assert [row.split(",")[3] for row in rows] == [event.label for event in events]
    neighbour.click()
    seen(browser, ".block", "0:03")  # the length in the player
    browser.save_screenshot(str(tmp_path / "page.png"))
    log = [json.loads(entry["message"]) for entry in browser.get_log("performance")]
    asked = {
        entry["message"]["params"]["request"]["url"]
        for entry in log
        if entry["message"]["method"] == "Network.requestWillBeSent"
    }
    own = (site.url, "data:", "blob:", "chrome:")
    assert asked and [url for url in asked if not url.startswith(own)] == []


@pytest.mark.slow
@needs_gradio
@needs_browser
def test_a_message_says_what_is_wrong_with_a_clip(site, browser):
    browser.get(site.url)
    seen(browser, "input[type=file]", shown=False).send_keys(
        str(site.folder / "long.wav")
    )
    seen(browser, "body", "the clip has 31.0 s, the page takes 30 s: cut it, or start")
