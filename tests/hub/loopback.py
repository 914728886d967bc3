"""A Hugging Face Hub on the loopback interface: as much of its interface as `huggingface_hub` needs to make a
repository, commit to it and fetch from it. Large files go the way of Git LFS, as at the real one without hf_xet."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: who may do everything, and who may read all but what is gated."""
LFS_FROM = 10_000
"""Bytes from which a file is large."""
NAME = r"(?P<name>[^/]+/[^/]+)"
NO_REPOSITORY, NO_REVISION, NO_FILE, GATED = "RepoNotFound", "RevisionNotFound", "EntryNotFound", "GatedRepo"


@dataclass
class Repository:
    """Branches and pull requests -> commits -> files."""

    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str = "", ref: str = "main") -> str:
        """Commit files as all there are; the commit's name."""
        told = [str(len(self.commits)), *(f"{name} {hashlib.sha1(c).hexdigest()}" for name, c in files.items())]
        commit = hashlib.sha1("\n".join(told).encode()).hexdigest()
        self.commits[commit], self.messages[commit], self.refs[ref] = files, message, commit
        return commit

    def find(self, revision: str) -> str | None:
        """The commit of a revision."""
        return self.refs.get(revision, revision if revision in self.commits else None)

    @property
    def head(self) -> dict[str, bytes]:
        """The files of the main branch."""
        return self.commits[self.refs["main"]]


class Hub(ThreadingHTTPServer):
    """The server; `failing`: statuses with which the next requests of a path that ends so are answered."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.failing: dict[str, int] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def make(self, name: str, private: bool = False) -> Repository:
        """A repository as the Hub makes it."""
        self.repositories[name] = Repository(private)
        self.repositories[name].commit({".gitattributes": b"*.onnx filter=lfs diff=lfs merge=lfs -text\n"})
        return self.repositories[name]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers during the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        try:
            for end, status in self.server.failing.items():
                if path.endswith(end):
                    raise _Refused(status)
            for method, pattern, route in ROUTES:
                found = re.fullmatch(pattern, path)
                if method == self.command.replace("HEAD", "GET") and found is not None:
                    return route(self, body, **{k: unquote(v) for k, v in found.groupdict().items()})
            raise _Refused(404)
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.send(refused.status, b"{}", {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, document: object) -> None:
        self.send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    @property
    def token(self) -> str | None:
        _, _, token = self.headers.get("Authorization", "").partition(" ")
        if token and token not in (WRITER, READER):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return token or None

    def repository(self, name: str, *, write: bool = False) -> Repository:
        """One that whoever asks may see, and write."""
        token, found = self.token, self.server.repositories.get(name)
        if found is None or (found.private and token is None):
            raise _Refused(401 if token is None else 404, NO_REPOSITORY)
        if write and token != WRITER:
            raise _Refused(403, message="You don't have the rights to write here")
        return found

    def commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.find(revision)
        if commit is None:
            raise _Refused(404, NO_REVISION)
        return commit

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        repository = self.repository(name)
        commit = self.commit_of(repository, revision)
        files = [{"rfilename": path} for path in repository.commits[commit]]
        gated = "manual" if repository.gated else False
        self.json({"id": name, "sha": commit, "private": repository.private, "gated": gated, "siblings": files})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        repository = self.repository(name)
        files = repository.commits[self.commit_of(repository, revision)]
        self.json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
        )

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        commit = self.commit_of(repository, revision)
        if repository.gated and self.token != WRITER:
            raise _Refused(403, GATED)
        content = repository.commits[commit].get(path)
        if content is None:
            raise _Refused(404, NO_FILE)
        self.send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.token != WRITER:
            raise _Refused(403, message="You don't have the rights to create a model under this namespace")
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            raise _Refused(409)
        self.server.make(name, asked.get("visibility") == "private" or asked.get("private") is True)
        self.json({"url": f"{self.server.url}/{name}"})

    def check_card(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        if found is None or not isinstance(yaml.safe_load(found[1]), dict):
            raise _Refused(400)
        self.json({"errors": [], "warnings": []})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        if branch in repository.refs:
            raise _Refused(409)
        repository.refs[branch] = repository.refs["main"]
        self.json({})

    def modes(self, body: bytes, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        self.commit_of(repository, revision)
        files = json.loads(body)["files"]
        self.json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    def batch(self, body: bytes, name: str) -> None:
        self.repository(name, write=True)
        objects = []
        for item in json.loads(body)["objects"]:
            href = f"{self.server.url}/lfs/{item['oid']}"
            missing = item["oid"] not in self.server.large
            objects.append({**item, **({"actions": {"upload": {"href": href}}} if missing else {})})
        self.json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400)
        self.server.large[oid] = body
        self.send(200, b"")

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        before = self.commit_of(repository, revision)
        files, message = dict(repository.commits[before]), ""
        for line in body.splitlines():
            what, value = json.loads(line)["key"], json.loads(line)["value"]
            if what == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, before):
                    raise _Refused(412, message="A commit has happened since")
            elif what == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif what == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif what == "deletedFile":
                del files[value["path"]]
        url = f"{self.server.url}/{name}"
        if "create_pr" in parse_qs(urlsplit(self.path).query):
            commit = repository.commit(files, message, "refs/pr/1")
            self.json(
                {"commitUrl": f"{url}/commit/{commit}", "commitOid": commit, "pullRequestUrl": f"{url}/discussions/1"}
            )
            return
        commit = repository.commit(files, message, revision)
        self.json({"commitUrl": f"{url}/commit/{commit}", "commitOid": commit})


MODEL = f"/api/models/{NAME}"
ROUTES = (
    ("GET", MODEL, _Handler.info),
    ("GET", f"{MODEL}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", f"{MODEL}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET", f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.check_card),
    ("POST", f"{MODEL}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", f"{MODEL}/preupload/(?P<revision>[^/]+)", _Handler.modes),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put),
    ("POST", f"{MODEL}/commit/(?P<revision>[^/]+)", _Handler.commit),
)
