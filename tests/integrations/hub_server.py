"""A Hub on 127.0.0.1: what huggingface_hub asks of the real one, in memory, and its faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of what goes by LFS."""
TOKEN = "hf_of_me"
LICENSES = ("mit", "apache-2.0", "other")


@dataclass
class Repo:
    """A repository: commits by hash, each all of its files; branches and tags; who may look."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def commit(self, ref: str, files: Mapping[str, bytes | None], message: str = "") -> str:
        """Files upon those of a branch; None takes one away."""
        whole = {**self.commits[self.refs[ref]]} if ref in self.refs else {}
        whole |= files
        whole = {name: raw for name, raw in whole.items() if raw is not None}
        content = repr((len(self.commits), sorted((n, sha256(raw)) for n, raw in whole.items())))
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid], self.refs[ref] = whole, oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a hash."""
        return revision if revision in self.commits else self.refs.get(revision)


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def blob(raw: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


class Hub:
    """The server. `with Hub() as hub` starts it; `hub.url` is its address.

    Attributes:
        repos: by name.
        objects: what was uploaded by LFS, by SHA-256.
        asked: "METHOD /path" of every request, in order.
        fault: called with "METHOD /path" before a request is answered; what it returns is a status
            to answer with, or a number of bytes after which the connection is cut, as ("cut", n).
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo]
        self.objects: dict[str, bytes]
        self.asked: list[str]
        self.fault: Callable[[str], Any]
        self.reset()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self})
        )
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        # large files lie on a host of another name, as with the real one, which sees no token
        self.url, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}/cdn"

    def __enter__(self) -> Hub:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def reset(self) -> None:
        """Forget everything."""
        self.repos, self.objects, self.asked, self.fault = {}, {}, [], lambda line: None

    def put(self, name: str, **files: bytes | None) -> str:
        """Commit files to the main branch of a repository; `config_json` is config.json."""
        repo = self.repos.setdefault(name, Repo())
        named = {re.sub(r"_(?=[a-z]+$)", ".", key): raw for key, raw in files.items()}
        return repo.commit("main", named)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        repo = self.repos[name]
        return repo.commits[repo.resolve(revision) or ""]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError):  # of a client that is gone, or that was cut off
            self.close_connection = True

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), unquote(parts.path)
        line = f"{self.command} {path}"
        self.hub.asked.append(line)
        fault = self.hub.fault(line)
        if isinstance(fault, tuple) and self.command in ("PUT", "POST"):
            self.rfile.read(1)
            return self._cut()
        self.body, self.cut_after = self._read(), None
        if isinstance(fault, tuple):
            self.cut_after = fault[1]
        elif fault:
            return self._refuse(fault, "the fault of a test")
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, line):
                return getattr(self, method)(**found.groupdict())
        return self._refuse(404, f"no such address: {line}")

    def __getattr__(self, name: str) -> Any:
        if name in ("do_GET", "do_HEAD", "do_POST", "do_PUT"):
            return self._serve
        raise AttributeError(name)

    def _read(self) -> bytes:
        """The body of a request, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # -- answers

    def _send(self, status: int, raw: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None and len(raw) > self.cut_after:
            self.wfile.write(raw[: self.cut_after])
            self._cut()
        else:
            self.wfile.write(raw)

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        self.cut_after = None
        raw = json.dumps({"error": message}).encode()
        extra = {"X_Error_Code": code} if code else {}
        self._send(status, raw, Content_Type="application/json", X_Error_Message=message, **extra)

    def _repo(self, name: str) -> Repo | None:
        """A repository that the asker may see; else the answer that the Hub gives."""
        repo, token = self.hub.repos.get(name), self.headers.get("Authorization")
        known = token == f"Bearer {TOKEN}"
        if token and not known:
            self._refuse(401, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not known):
            self._refuse(404 if known else 401, "Repository not found", "RepoNotFound")
        elif repo.gated and not known:
            self._refuse(403, f"Access to model {name} is restricted", "GatedRepo")
        else:
            return repo
        return None

    def _writable(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._refuse(401, "Invalid username or password.")
        return False

    def _at(self, name: str, revision: str) -> tuple[Repo, str] | None:
        repo = self._repo(name)
        if repo is None:
            return None
        oid = repo.resolve(revision)
        if oid is None:
            self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repo, oid

    # -- reading

    def info(self, name: str, revision: str | None = None) -> None:
        if found := self._at(name, revision or "main"):
            self._json({"id": name, "modelId": name, "sha": found[1], "private": found[0].private})

    def tree(self, name: str, revision: str) -> None:
        if found := self._at(name, revision):
            self._json([_entry(path, raw) for path, raw in found[0].commits[found[1]].items()])

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self._at(name, revision)
        if found is None:
            return
        raw, commit = found[0].commits[found[1]].get(path), {"X_Repo_Commit": found[1]}
        if raw is None:
            self._refuse(404, "Entry not found", "EntryNotFound")
        elif path.endswith(LARGE):
            self.hub.objects.setdefault(sha256(raw), raw)
            linked = {"X_Linked_Size": str(len(raw)), "X_Linked_Etag": f'"{sha256(raw)}"'}
            where = f"{self.hub.cdn}/{sha256(raw)}"
            self._send(302, b"", Location=where, **commit, **linked)
        else:
            size = str(len(raw))
            self._send(200, raw, ETag=f'"{blob(raw)}"', Content_Length=size, **commit)

    def large(self, oid: str) -> None:
        assert "Authorization" not in self.headers
        raw, span = self.hub.objects[oid], self.headers.get("Range")
        if span is None:
            return self._send(200, raw)
        first = int(re.fullmatch(r"bytes=(\d+)-", span)[1])  # type: ignore[index]
        rest = f"bytes {first}-{len(raw) - 1}/{len(raw)}"
        return self._send(206, raw[first:], Content_Range=rest)

    # -- writing

    def create(self) -> None:
        asked = json.loads(self.body)
        if not self._writable():
            return None
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if not name.startswith("me/"):
            return self._refuse(403, f"You don't have the rights to create a model under {name}")
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return self._json({**answer, "error": "You already created this model repo"}, 409)
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b""}, "initial commit")
        return self._json(answer)

    def branch(self, name: str, branch: str) -> None:
        if not self._writable() or (repo := self._repo(name)) is None:
            return None
        if branch in repo.refs:
            return self._refuse(409, f"Reference already exists: {branch}")
        repo.refs[branch] = repo.refs["main"]
        return self._json({})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        block = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", content)
        try:
            found = yaml.safe_load(block[2]) if block else {}
            if found.get("license", "mit") not in LICENSES:
                raise ValueError('"license" must be one of [' + ", ".join(LICENSES) + "]")
        except (yaml.YAMLError, ValueError) as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        found = self._at(name, revision) if self._writable() else None
        if found is None:
            return
        there = found[0].commits[found[1]]
        self._json(
            {"files": [_plan(file["path"], there) for file in json.loads(self.body)["files"]]}
        )

    def batch(self, name: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{one['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}}
            known = one["oid"] in self.hub.objects
            objects.append({**one, **({} if known else {"actions": actions})})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if sha256(self.body) != oid:
            return self._refuse(400, "this is not what was announced")
        self.hub.objects[oid] = self.body
        return self._send(200)

    def verify(self) -> None:
        asked = json.loads(self.body)
        self._send(200 if len(self.hub.objects.get(asked["oid"], b"")) == asked["size"] else 404)

    def commit(self, name: str, revision: str) -> None:
        found = self._at(name, revision) if self._writable() else None
        if found is None:
            return None
        head, *changes = [json.loads(line) for line in self.body.splitlines()]
        files: dict[str, bytes | None] = {}
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                files[value["path"]] = None
        repo, answer = found[0], {"pullRequestUrl": None}
        if "create_pr" in self.query:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            repo.refs[f"refs/pr/{number}"] = found[1]
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        oid = repo.commit(revision, files, head["value"]["summary"])
        return self._json(
            {**answer, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
        )


def _entry(path: str, raw: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(raw), "oid": blob(raw)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": sha256(raw), "size": len(raw), "pointerSize": 134}
    return entry


def _plan(path: str, there: Mapping[str, bytes]) -> dict[str, Any]:
    large = path.endswith(LARGE)
    plan = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if path in there:
        plan["oid"] = (sha256 if large else blob)(there[path])
    return plan


def _routes() -> Iterator[tuple[str, str]]:
    name = r"(?P<name>[\w.-]+/[\w.-]+)"
    yield rf"GET /api/models/{name}(/revision/(?P<revision>.+))?", "info"
    yield rf"GET /api/models/{name}/tree/(?P<revision>.+)", "tree"
    yield rf"(GET|HEAD) /{name}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", "resolve"
    yield r"(GET|HEAD) /cdn/(?P<oid>\w+)", "large"
    yield r"POST /api/repos/create", "create"
    yield rf"POST /api/models/{name}/branch/(?P<branch>.+)", "branch"
    yield r"POST /api/validate-yaml", "validate"
    yield rf"POST /api/models/{name}/preupload/(?P<revision>.+)", "preupload"
    yield rf"POST /{name}\.git/info/lfs/objects/batch", "batch"
    yield r"PUT /lfs/(?P<oid>\w+)", "upload"
    yield r"POST /verify", "verify"
    yield rf"POST /api/models/{name}/commit/(?P<revision>.+)", "commit"


ROUTES = list(_routes())
