"""A small Hugging Face Hub that can be written to: repositories, branches, commits."""

import base64
import hashlib
import json
from urllib.parse import unquote

from tests.hub_case import LARGE, Hub, _Handler, _sibling

TOKEN = "hf_test"
LFS = (*LARGE, ".zip")


class WritableHub(Hub):
    """A `Hub` with `branches[repo] = {branch: commit}` and what was uploaded.

    `private` holds repositories, `blobs` large files by SHA-256, `commits` counts the
    commits made by others than `add`. `forbidden` and `invalid_card` are answers: no
    permission to write, and the Hub's complaint about README.md. `cut` maps a SHA-256
    to the number of bytes after which its upload breaks off, once.
    """

    def __init__(self):
        super().__init__()
        hub = self

        class Handler(_WritableHandler):
            server_hub = hub

        self.server.RequestHandlerClass = Handler
        self.branches, self.private, self.blobs, self.cut = {}, set(), {}, {}
        self.commits, self.uploads, self.forbidden, self.invalid_card = 0, [], False, ""

    def add(self, repo, files, commit="c" * 40):
        """Make `files` the main branch of a repository."""
        super().add(repo, files, commit)
        self.branches.setdefault(repo, {})["main"] = commit

    def files(self, repo, branch="main"):
        """The files of a branch but .gitattributes."""
        found = self.repos[repo][self.branches[repo][branch]]
        return {name: data for name, data in found.items() if name[0] != "."}


class _WritableHandler(_Handler):
    def _find(self, hub, repo, revision):
        commit = hub.branches.get(repo, {}).get(revision, revision)
        return super()._find(hub, repo, commit)

    def _info(self, hub, repo, revision):
        found = self._find(hub, repo, unquote(revision))
        if found is None:
            return
        siblings = [_sibling(name, data) for name, data in found[1].items()]
        private = repo in hub.private
        content = {"id": repo, "sha": found[0], "siblings": siblings}
        self._json(200, {**content, "private": private})

    def _json(self, status, content):
        self._send(status, json.dumps(content).encode(), {})

    def _body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self):
        hub, path = self.server_hub, self.path.split("?")[0]
        hub.requests.append(("POST", path))
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, None)
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(hub, json.loads(body))
        if hub.forbidden and "validate" not in path:
            return self._error(403, None)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[1:] == ["repos", "create"]:
            return self._create(hub, json.loads(body))
        if parts[1:] == ["validate-yaml"]:
            errors = [{"message": hub.invalid_card}] if hub.invalid_card else []
            return self._json(400 if errors else 200, {"errors": errors})
        repo, what, revision = "/".join(parts[2:4]), parts[4], parts[5]
        if what == "branch":
            return self._branch(hub, repo, revision)
        if what == "preupload":
            return self._preupload(hub, repo, revision, json.loads(body))
        return self._commit(hub, repo, revision, body)

    def _create(self, hub, wanted):
        repo = f"{wanted['organization']}/{wanted['name']}"
        if repo in hub.repos:
            return self._json(409, {"error": "exists", "url": f"{hub.url}/{repo}"})
        hub.add(repo, {".gitattributes": b"*.zip filter=lfs"}, "0" * 40)
        if wanted.get("visibility") == "private":
            hub.private.add(repo)
        self._json(200, {"url": f"{hub.url}/{repo}"})

    def _branch(self, hub, repo, branch):
        if branch in hub.branches[repo]:
            return self._json(409, {"error": "exists"})
        hub.branches[repo][branch] = hub.branches[repo]["main"]
        self._json(200, {})

    def _preupload(self, hub, repo, revision, wanted):
        there = hub.repos[repo][hub.branches[repo][revision]]
        answers = []
        for file in wanted["files"]:
            answer = {"path": file["path"], "shouldIgnore": False}
            answer["uploadMode"] = "lfs" if file["path"].endswith(LFS) else "regular"
            if file["path"] in there:
                data = there[file["path"]]
                large = hashlib.sha256(data).hexdigest()
                small = _sibling(file["path"], data)["blobId"]
                answer["oid"] = large if answer["uploadMode"] == "lfs" else small
            answers.append(answer)
        self._json(200, {"files": answers})

    def _batch(self, hub, wanted):
        objects = []
        for item in wanted["objects"]:
            if item["oid"] not in hub.blobs:
                href = f"{hub.url}/lfs/{item['oid']}"
                item = {**item, "actions": {"upload": {"href": href}}}
            objects.append(item)
        self._json(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self):
        hub, oid = self.server_hub, self.path.split("/")[-1]
        if oid in hub.cut:
            self.rfile.read(hub.cut[oid])
            self.close_connection = True
            self.connection.close()
            return
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == oid
        hub.blobs[oid] = content
        hub.uploads.append(oid)
        self._send(200, b"", {})

    def _commit(self, hub, repo, branch, body):
        before = hub.branches[repo][branch]
        files = dict(hub.repos[repo][before])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit", before) != before:
                    return self._json(412, {"error": "moved"})
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
            else:
                del files[value["path"]]
        hub.commits += 1
        commit = f"{hub.commits:040x}"
        hub.repos[repo][commit] = files
        hub.branches[repo][branch] = commit
        url = f"{hub.url}/{repo}/commit/{commit}"
        self._json(200, {"commitUrl": url, "commitOid": commit})
