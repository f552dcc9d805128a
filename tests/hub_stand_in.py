"""A stand-in for the hub on the loopback: the parts of its HTTP interface that schedules need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Repositories as lists of commits, each a mapping of paths to contents.

    Arguments:
        repos: The commits of each repository, oldest first.
        gated: Repositories that only `token` may read.
        token: The one that may write.
    """

    token = "hf_secret"

    def __init__(self) -> None:
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.requests: list[str] = []

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        commits = self.repos[repo]
        if revision == "main":
            return commits[-1]
        return {self.sha(repo, number): files for number, files in enumerate(commits)}.get(revision)

    def sha(self, repo: str, number: int = -1) -> str:
        number = number % len(self.repos[repo])
        return hashlib.sha1(f"{repo}{number}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def allowed(self, repo: str) -> bool:
        mine = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repo not in self.hub.repos or (repo in self.hub.private and not mine):
            self.fail(401 if not mine else 404, "RepoNotFound")
        elif repo in self.hub.gated and not mine:
            self.fail(403, "GatedRepo")
        else:
            return True
        return False

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        listing = re.fullmatch(r"/api/models/(\w+/[\w.-]+)/(tree|revision)/([\w.-]+)", path)
        file = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path)
        found = listing or file
        repo = found[1] if found else path.removeprefix("/api/models/")
        if not self.allowed(repo):
            return
        revision = listing[3] if listing else file[2] if file else "main"
        files = self.hub.files(repo, revision)
        if files is None:
            return self.fail(404, "RevisionNotFound")
        number = self.hub.repos[repo].index(files)
        if file is None:
            rows = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()]
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repo, "sha": self.hub.sha(repo, number), "siblings": siblings}
            return self.answer(200, rows if listing and listing[2] == "tree" else info)
        if file[3] not in files:
            return self.fail(404, "EntryNotFound")
        content = files[file[3]]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(200, content, ETag=etag, X_Repo_Commit=self.hub.sha(repo, number))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "validate" not in self.path and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.fail(401, "Unauthorized")
        address = f"http://{self.headers['Host']}"
        if self.path == "/api/validate-yaml":  # of the card
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given.get('organization') or 'user'}/{given['name']}"
            known = repo in self.hub.repos
            self.hub.repos.setdefault(repo, [{}])
            if given.get("private") or given.get("visibility") == "private":
                self.hub.private.add(repo)
            return self.answer(409 if known else 200, {"url": f"{address}/{repo}"})
        if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/preupload/main", self.path.split("?")[0]):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(200, {"files": modes})
        found = re.fullmatch(r"/api/models/(\w+/[\w.-]+)/commit/main", self.path.split("?")[0])
        assert found, self.path
        files = dict(self.hub.repos[found[1]][-1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.hub.messages.append(line["value"]["summary"])
            else:
                assert line["key"] == "file", line
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.hub.repos[found[1]].append(files)
        sha = self.hub.sha(found[1])
        self.answer(200, {"commitUrl": f"{address}/{found[1]}/commit/{sha}", "commitOid": sha})

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serving() -> Iterator[tuple[Hub, str]]:
    """Yields a hub and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
