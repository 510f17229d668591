"""A Hub on loopback, in its own process, from the standard library: real HTTP, repositories in memory, faults.

    with HubServer() as hub:                                      # or the fixture `hub`: one server per test module
        child = subprocess.run([...], env=hub.environment(home))  # a process whose Hub is this one, its cache in `home`
        hub.files("ana/shop")                                     # {path: sha256 of the content} on branch main
        with hub.fault("PUT", "/lfs/", kind="drop", times=1):     # the next upload breaks off half-way
            ...
        hub.requests()                                            # ["POST /api/repos/create 200"], since the last call

`hub.endpoint` goes into HF_ENDPOINT, which huggingface_hub reads once, at its import: use it in child processes, or
pass `HfApi(endpoint=hub.endpoint, token=hub.token)`. Xet must be off (`environment` sees to that).

It speaks what huggingface_hub 2.x, transformers 5 and datasets 5 ask for: whoami, create (409 with the url if there),
delete, settings, validate-yaml, preupload, LFS batch / upload / verify, commit (ndjson; all or nothing), info, tree,
paths-info, commits, refs, branch, tag, and resolve with ETag and Range, for models, datasets and Spaces. Writing needs
the bearer token; private repositories cannot be seen without it (401).

Kinds of faults: an HTTP status ("401", "404", "429", "500"), "drop" (the connection breaks in the middle of the
request's body, or of the answer's), "corrupt" (one byte of what is sent or received is flipped, the length stays) and
"truncate" (the answer ends early and claims to be complete).

What it cannot prove: it was written from the client's source and never compared with the live service. No redirects to
a CDN, no Xet, no rate limits of its own, no validation of cards, no history beyond the commits' file lists.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "ana"
TOKEN = "hf_" + "loopbackonly" * 3
DATE = "2026-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin", ".pt", ".png", ".gz")
LARGEST_REGULAR_FILE = 1_000_000
REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"


# ----------------------------------------------------------------------------------------------------------------------
# The test's side
# ----------------------------------------------------------------------------------------------------------------------


class HubServer:
    """Starts the server in a process of its own and talks to it.

    Attributes:
        endpoint: its URL, for HF_ENDPOINT.
        user, token: the only account there is; the user may write to every namespace.
    """

    user, token = USER, TOKEN

    def __enter__(self) -> HubServer:
        self._process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.terminate()

    def environment(self, home: Path, token: str | None = TOKEN, offline: bool = False) -> dict[str, str]:
        """The environment of a child process: this Hub, its cache in `home`, and nothing of the parent's settings."""
        found = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            "PATH": os.environ.get("PATH", ""),
        }
        return found if token is None else {**found, "HF_TOKEN": token}

    def files(self, repo: str, kind: str = "model", revision: str = "main") -> dict[str, str]:
        """{path: sha256} of a revision; ValueError if there is no such repository."""
        found = self._ask("files", kind=f"{kind}s", repo=repo, revision=revision)
        if found is None:
            raise ValueError(f"the server holds no {kind} {repo} with the revision {revision}.")
        return found

    def read(self, repo: str, path: str, kind: str = "model") -> bytes:
        """The content of a file on branch main."""
        return base64.b64decode(self._ask("read", kind=f"{kind}s", repo=repo, path=path))

    def repositories(self) -> dict[str, dict[str, Any]]:
        """{"models/ana/shop": {"private": True, "commits": 1, "branches": [...], "tags": [...]}}."""
        return self._ask("repositories")

    def requests(self) -> list[str]:
        """Every request since the last call as "METHOD path status"; status 0 where the connection was dropped."""
        return self._ask("requests")

    @contextmanager
    def fault(self, method: str, path: str, kind: str, times: int | None = None) -> Iterator[None]:
        """While the block runs, requests with this method whose path matches the regular expression fail.

        Args:
            kind: see the module's docstring.
            times: how often; None means every time.
        """
        self._ask("inject", method=method, path=path, fault=kind, times=times)
        try:
            yield
        finally:
            self._ask("heal")

    def _ask(self, question: str, **values: Any) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/_test/{question}", json.dumps(values).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return json.load(answer)


# ----------------------------------------------------------------------------------------------------------------------
# What is stored
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(f"blob {len(self.content)}\0".encode() + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def entry(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid}
        if self.is_lfs:
            found["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return found


@dataclass
class Repository:
    kind: str
    name: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {}, "initial commit")

    def find(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit id."""
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        listing = json.dumps([len(self.commits), self.name, sorted((path, b.sha256) for path, b in files.items())])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid], self.branches[branch], self.messages[oid] = files, oid, message
        return oid


@dataclass
class Fault:
    method: str
    path: str
    kind: str
    times: int | None


class Store:
    """Everything the server remembers; one lock, because requests come in threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []

    def fault_of(self, method: str, path: str) -> str | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault.kind
        return None


# ----------------------------------------------------------------------------------------------------------------------
# The protocol
# ----------------------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str = "", **extra: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.extra = status, code, extra


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    # method, pattern of the path, name of the function here
    ROUTES = (
        ("POST", r"/_test/(?P<question>\w+)", "test"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("PUT", rf"/api/{REPO}/settings", "settings"),
        ("POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
        ("POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", rf"/api/{REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", rf"/api/{REPO}/commits/(?P<revision>[^/]+)", "commits"),
        ("GET", rf"/api/{REPO}/refs", "refs"),
        ("POST", rf"/api/{REPO}/(?P<what>branch|tag)/(?P<name>[^/]+)", "add_ref"),
        ("DELETE", rf"/api/{REPO}/(?P<what>branch|tag)/(?P<name>[^/]+)", "delete_ref"),
        ("GET", r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
         "resolve"),
    )  # fmt: skip

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        is_test = url.path.startswith("/_test/")
        fault = None if is_test else self.store.fault_of(self.command, url.path)
        self.fault = fault
        self.status = 0
        try:
            if fault is not None and fault.isdigit():
                self.body()
                raise Refused(int(fault), f"injected {fault}", "EntryNotFound" if fault == "404" else "")
            self.content = self.body()
            name, values = self.route(unquote(url.path))
            with self.store.lock:
                found = getattr(self, name)(**values)
            if found is not None:
                self.send_json(200, found)
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.send_json(refused.status, {"error": str(refused), **refused.extra}, headers)
        except ConnectionError:
            self.close_connection = True
        finally:
            if not is_test:
                with self.store.lock:
                    self.store.log.append(f"{self.command} {url.path} {self.status}")

    def route(self, path: str) -> tuple[str, dict[str, Any]]:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if wanted == method and match:
                values = match.groupdict()
                if "kind" in values:
                    values["kind"] = values["kind"] or "models"
                return name, values
        raise Refused(404, f"no such endpoint: {self.command} {path}")

    # -- reading and writing -------------------------------------------------------------------------------------------

    def body(self) -> bytes:
        """The request's body, plain or chunked; half of it and then a broken connection under the fault "drop"."""
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if self.fault == "drop":
                    raise ConnectionError
            self.rfile.readline()
            content = b"".join(parts)
        else:
            length = int(self.headers.get("Content-Length") or 0)
            if self.fault == "drop" and length:
                self.rfile.read(length // 2)
                raise ConnectionError
            content = self.rfile.read(length)
        return flipped(content) if self.fault == "corrupt" and content else content

    def json(self) -> Any:
        return json.loads(self.content or b"{}")

    def send_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.status = status
        if self.fault == "truncate":
            content = content[: len(content) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "drop":
            self.wfile.write(content[: len(content) // 2])
            self.status = 0
            raise ConnectionError
        self.wfile.write(flipped(content) if self.fault == "corrupt" else content)

    # -- who may do what -----------------------------------------------------------------------------------------------

    def may_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid username or password.")

    def repository(self, kind: str, repo: str) -> Repository:
        given = self.headers.get("Authorization")
        if given is not None:
            self.may_write()
        found = self.store.repositories.get((kind, repo))
        if found is None or (found.private and given is None):
            raise Refused(404 if given else 401, "Repository not found", "RepoNotFound")
        return found

    def files(self, kind: str, repo: str, revision: str | None) -> tuple[Repository, str, dict[str, Blob]]:
        repository = self.repository(kind, repo)
        oid = repository.find(unquote(revision or "main"))
        if oid is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, oid, repository.commits[oid]

    # -- endpoints -----------------------------------------------------------------------------------------------------

    def whoami(self) -> Any:
        self.may_write()
        token = {"displayName": "test", "role": "write"}
        return {"type": "user", "name": USER, "auth": {"type": "access_token", "accessToken": token}, "orgs": []}

    def validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    def create(self) -> Any:
        self.may_write()
        asked = self.json()
        kind, name = f"{asked.get('type', 'model')}s", f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"http://{self.headers['Host']}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.store.repositories:
            raise Refused(409, "You already created this repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.store.repositories[kind, name] = Repository(kind, name, private)
        return {"url": url, "name": name, "id": name}

    def delete(self) -> Any:
        self.may_write()
        asked = self.json()
        kind, name = f"{asked.get('type', 'model')}s", f"{asked.get('organization') or USER}/{asked['name']}"
        self.repository(kind, name)
        del self.store.repositories[kind, name]
        return {}

    def settings(self, kind: str, repo: str) -> Any:
        self.may_write()
        asked = self.json()
        self.repository(kind, repo).private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return {}

    def preupload(self, kind: str, repo: str, revision: str) -> Any:
        self.may_write()
        _, _, files = self.files(kind, repo, revision)
        answers = []
        for asked in self.json()["files"]:
            path, size = asked["path"], asked["size"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or size > LARGEST_REGULAR_FILE else "regular"
            there = files.get(path)
            oid = None if there is None else there.etag
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, kind: str, repo: str) -> Any:
        self.may_write()
        self.repository(kind, repo)
        objects = []
        for asked in self.json()["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.store.lfs:
                href = f"http://{self.headers['Host']}/lfs/{asked['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, oid: str) -> Any:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Refused(400, f"the content received is not the object {oid}: it was corrupted on its way")
        self.store.lfs[oid] = self.content
        return {}

    def lfs_verify(self, oid: str) -> Any:
        if oid not in self.store.lfs:
            raise Refused(404, f"no LFS object {oid}")
        return {}

    def commit(self, kind: str, repo: str, revision: str) -> Any:
        self.may_write()
        branch = unquote(revision)
        repository, before, files = self.files(kind, repo, revision)
        if branch not in repository.branches:
            raise Refused(400, f"{branch} is no branch")
        files = dict(files)
        summary = ""
        for line in self.content.splitlines():
            asked = json.loads(line)
            value = asked["value"]
            if asked["key"] == "header":
                summary = value["summary"]
                if value.get("parentCommit", before) != before:
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif asked["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
            elif asked["key"] == "lfsFile":
                if value["oid"] not in self.store.lfs:
                    raise Refused(400, f"LFS object {value['oid']} of {value['path']} was never uploaded")
                files[value["path"]] = Blob(self.store.lfs[value["oid"]], is_lfs=True)
            elif asked["key"] == "deletedFile":
                if value["path"] not in files:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[value["path"]]
            elif asked["key"] == "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                files = {path: blob for path, blob in files.items() if not path.startswith(prefix)}
            else:
                raise Refused(400, f"unknown operation {asked['key']}")
        oid = repository.commit(branch, files, summary)
        return {"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{oid}", "commitOid": oid, "success": True}

    def info(self, kind: str, repo: str, revision: str | None) -> Any:
        repository, oid, files = self.files(kind, repo, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        if self.query.get("blobs"):
            siblings = [
                {
                    "rfilename": path,
                    "size": len(blob.content),
                    "blobId": blob.git_oid,
                    **({"lfs": {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": 130}}
                       if blob.is_lfs else {}),
                }
                for path, blob in sorted(files.items())
            ]  # fmt: skip
        return {
            "_id": repo,
            "id": repo,
            "modelId": repo,
            "author": repo.split("/")[0],
            "sha": oid,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "lastModified": DATE,
            "createdAt": DATE,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }

    def tree(self, kind: str, repo: str, revision: str, path: str | None) -> Any:
        _, oid, files = self.files(kind, repo, revision)
        prefix = f"{path.rstrip('/')}/" if path else ""
        inside = {name: blob for name, blob in sorted(files.items()) if name.startswith(prefix)}
        if path and not inside:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        entries, folders = [], set()
        for name, blob in inside.items():
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if folder not in folders and (recursive or depth == 1):
                    folders.add(folder)
                    entries.append({"type": "directory", "path": folder, "oid": oid, "size": 0})
            if recursive or len(parts) == 1:
                entries.append(blob.entry(name))
        return entries

    def paths_info(self, kind: str, repo: str, revision: str) -> Any:
        _, oid, files = self.files(kind, repo, revision)
        is_json = "json" in (self.headers.get("Content-Type") or "")
        asked = self.json()["paths"] if is_json else parse_qs(self.content.decode()).get("paths", [])
        entries = []
        for path in [asked] if isinstance(asked, str) else asked:
            if path in files:
                entries.append(files[path].entry(path))
            elif any(name.startswith(f"{path}/") for name in files) or path in ("", "."):
                entries.append({"type": "directory", "path": path, "oid": oid, "size": 0})
        return entries

    def commits(self, kind: str, repo: str, revision: str) -> Any:
        repository, _, _ = self.files(kind, repo, revision)
        return [
            {"id": oid, "title": message, "message": "", "authors": [{"user": USER}], "date": DATE}
            for oid, message in reversed(repository.messages.items())
        ]

    def refs(self, kind: str, repo: str) -> Any:
        repository = self.repository(kind, repo)

        def listed(names: dict[str, str], where: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in names.items()]

        return {
            "branches": listed(repository.branches, "heads"),
            "converts": [],
            "tags": listed(repository.tags, "tags"),
            "pullRequests": [],
        }

    def add_ref(self, kind: str, repo: str, what: str, name: str) -> Any:
        self.may_write()
        # A tag's path names the revision and its body the tag; a branch is the other way round.
        asked = self.json()
        revision = name if what == "tag" else asked.get("startingPoint", "main")
        repository, oid, _ = self.files(kind, repo, revision)
        names = repository.tags if what == "tag" else repository.branches
        new = asked["tag"] if what == "tag" else unquote(name)
        if new in names:
            raise Refused(409, f"the {what} {new} exists already")
        names[new] = oid
        return {}

    def delete_ref(self, kind: str, repo: str, what: str, name: str) -> Any:
        self.may_write()
        repository = self.repository(kind, repo)
        (repository.tags if what == "tag" else repository.branches).pop(unquote(name), None)
        return {}

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> Any:
        _, oid, files = self.files(kind, repo, revision)
        blob = files.get(path)
        headers = {"X-Repo-Commit": oid}
        if blob is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.send_json(404, {"error": "Entry not found"}, headers)
            return None
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        content, status = blob.content, 200
        if asked:
            begin, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, status = content[begin : end + 1], 206
        self.send(status, content, headers)
        return None

    # -- the test's questions ------------------------------------------------------------------------------------------

    def test(self, question: str) -> Any:
        asked, store = self.json(), self.store
        if question == "inject":
            store.faults.append(Fault(asked["method"], asked["path"], asked["fault"], asked["times"]))
        elif question == "heal":
            store.faults.clear()
        elif question == "requests":
            store.log, found = [], store.log
            return found
        elif question == "repositories":
            return {
                f"{kind}/{name}": {
                    "private": repository.private,
                    "commits": len(repository.commits),
                    "branches": sorted(repository.branches),
                    "tags": sorted(repository.tags),
                }
                for (kind, name), repository in store.repositories.items()
            }
        elif question in ("files", "read"):
            repository = store.repositories.get((asked["kind"], asked["repo"]))
            commit = None if repository is None else repository.find(asked.get("revision", "main"))
            if repository is None or commit is None:
                self.send_json(200, None)
                return None
            files = repository.commits[commit]
            if question == "read":
                return base64.b64encode(files[asked["path"]].content).decode()
            return {path: blob.sha256 for path, blob in files.items()}
        else:
            raise Refused(404, f"no such question: {question}")
        return {}


def flipped(content: bytes) -> bytes:
    """The content with one bit of its middle byte flipped."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else content


def main() -> None:
    class Handler(HubHandler):
        store = Store()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
