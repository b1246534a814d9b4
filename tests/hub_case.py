"""A small Hugging Face Hub on this machine, and the files it serves."""

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from huggingface_hub import constants

COMMIT = "a" * 40
LARGE = (".safetensors", ".pt", ".pth")


class Hub:
    """Repositories by name: {commit: {file name: content}}; `main` is the last one.

    `broken` maps a file name to the number of bytes after which its download breaks
    off, `status` overrides the answer for a repository, `requests` counts them all.
    """

    def __init__(self):
        self.repos, self.status, self.broken, self.requests = {}, {}, {}, []
        self.error_codes = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        thread.daemon = True
        thread.start()

    def add(self, repo, files, commit=COMMIT):
        """Make `files` the newest commit of a repository."""
        self.repos.setdefault(repo, {})[commit] = files

    def close(self):
        """Stop: from now on nobody listens at `url`."""
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving(monkeypatch):
    """A `Hub` in place of Hugging Face's, for this process."""
    hub = Hub()
    # huggingface_hub reads its environment variables once, when it is imported
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    template = template.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    waits = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: waits(min(seconds, 0.01)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        hub.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        hub, path = self.server_hub, unquote(self.path.split("?")[0])
        hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            revision = parts[5] if len(parts) > 5 else "main"
            return self._info(hub, repo, revision)
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        return self._file(hub, repo, parts[3], name, body)

    def _find(self, hub, repo, revision):
        """Commit and files, or None after an error was sent."""
        if repo in hub.status:
            return self._error(hub.status[repo], hub.error_codes.get(repo))
        if repo not in hub.repos:
            return self._error(404, "RepoNotFound")
        commits = hub.repos[repo]
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self._error(404, "RevisionNotFound")
        return commit, commits[commit]

    def _info(self, hub, repo, revision):
        found = self._find(hub, repo, revision)
        if found is None:
            return
        siblings = [_sibling(name, data) for name, data in found[1].items()]
        content = {"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings}
        self._send(200, json.dumps(content).encode(), {})

    def _file(self, hub, repo, revision, name, body):
        found = self._find(hub, repo, revision)
        if found is None:
            return
        data = found[1][name]
        sibling = _sibling(name, data)
        etag = sibling["lfs"]["sha256"] if "lfs" in sibling else sibling["blobId"]
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{etag}"'}
        served = hub.broken.get(name, data) if body else data
        if isinstance(served, int):
            self._send(200, data[:served], headers, len(data))
            self.close_connection = True
            return
        self._send(200, served if body else b"", headers, len(served))

    def _error(self, status, code):
        headers = {"X-Error-Code": code} if code else {}
        self._send(status, b'{"error": "no"}', headers)

    def _send(self, status, content, headers, length=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header(
            "Content-Length", str(len(content) if length is None else length)
        )
        self.send_header("Connection", "close")  # or close() would not end them
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sibling(name, data):
    sha1 = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    found = {"rfilename": name, "size": len(data), "blobId": sha1}
    if name.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
    return found
