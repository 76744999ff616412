"""A Hub on the loopback interface: what `huggingface_hub` asks of a server for models, and failures on command.

Nothing is written to disk. Uploads go by git-lfs (clients need HF_HUB_DISABLE_XET=1), owners are part of all names.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from repos import Commit, Repo, git_oid, is_lfs, oid


class Hub:
    """The server and all that it holds. `log` has a line for every request: "PUT /lfs/2cf2..."."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # what was uploaded to LFS, by SHA-256
        self.log: list[str] = []
        self.lock = threading.RLock()
        self.failures: list[tuple[str | int, str]] = []  # what no request has met yet
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """Put a repo there, whatever is in it."""
        repo = self.repos.setdefault(name, Repo(name, private))
        self.objects |= {oid(path, content): content for path, content in files.items() if is_lfs(path, len(content))}
        repo.commit("main", dict(files), "initial commit")
        return repo

    def fail(self, kind: str | int, pattern: str, times: int = 1) -> None:
        """Let the next `times` requests that match `pattern` ("PUT /lfs/*", as in a shell) fail.

        Kinds: a status, such as 503 (429 asks to retry after 0 seconds); "drop_upload" reads half of the body and
        hangs up; "drop_download" sends half and hangs up; "wrong_bytes" sends other bytes of the same length;
        "lost_answer" does what was asked and hangs up; "silence" never answers; "wait N" answers 503 and asks to retry
        after N seconds, "limit N" the same as a rate limit.
        """
        self.failures += [(kind, pattern)] * times

    def failure(self, request: str) -> str | int | None:
        with self.lock:
            met = next((failure for failure in self.failures if fnmatchcase(request, failure[1])), None)
            if met is None:
                return None
            self.failures.remove(met)
            return met[0]

    def requests(self, pattern: str) -> list[str]:
        return [line for line in self.log if fnmatchcase(line, pattern)]


class _Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, content: Any = None, **headers: str) -> None:
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()


def _missing(what: str) -> _Answer:
    return _Answer(404, {"error": f"{what} not found"}, X_Error_Code=f"{what}NotFound")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms for every answer
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        line = f"{self.command} {unquote(url.path)}"
        with self.hub.lock:
            self.hub.log.append(line)
        kind = self.hub.failure(line)
        if kind == "drop_upload":
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self._hang_up()
        self.body = self._read()
        if kind == "silence":
            self.hub.ended.wait()
            return self._hang_up()
        try:
            if isinstance(kind, str) and kind.startswith("wait "):
                raise _Answer(503, {"error": "on command"}, Retry_After=kind.removeprefix("wait "))
            if isinstance(kind, str) and kind.startswith("limit "):
                raise _Answer(429, {"error": "on command"}, RateLimit=f'"api";r=0;t={kind.removeprefix("limit ")}')
            if isinstance(kind, int):
                if kind >= 500:  # what stands in front of a server speaks no JSON
                    raise _Answer(kind, b"<html>on command</html>", Content_Type="text/html")
                raise _Answer(kind, {"error": "on command"}, **({"Retry_After": "0"} if kind == 429 else {}))
            with self.hub.lock:
                self._route(url.path)
        except _Answer as answer:
            if kind == "lost_answer":
                return self._hang_up()
            self._send(answer, kind)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: _Answer, kind: str | int | None) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))} | answer.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = bytes(byte ^ 0xFF for byte in answer.body) if kind == "wrong_bytes" else answer.body
        if kind == "drop_download":
            self.wfile.write(body[: len(body) // 2])
            return self._hang_up()
        self.wfile.write(body)

    def _route(self, path: str) -> None:
        if path == "/api/whoami-v2":
            raise _Answer(200, {"type": "user", "name": "me", "orgs": [], "auth": {"type": "access_token"}})
        if path == "/api/validate-yaml":
            raise _Answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            self._create(json.loads(self.body))
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})(/verify)?", path):
            self._lfs_upload(match[1], verify=match[2] is not None)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._lfs_batch(json.loads(self.body)["objects"])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self._repo(match[1])
            self._resolve(self._commit(repo, match[2]), unquote(match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?", path):
            repo, action, revision = self._repo(match[1]), match[2] or "revision", match[3] or "main"
            getattr(self, f"_{self.command}_{action}".replace("-", "_"), self._unknown)(repo, revision, match[4] or "")
        raise _missing("Entry")

    def _unknown(self, *_: Any) -> None:
        raise _missing("Entry")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(unquote(name))
        token = self.headers.get("Authorization")
        if token is None and (repo is None or repo.private or self.command not in ("GET", "HEAD")):
            raise _Answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
        if repo is None:
            raise _missing("Repo")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(unquote(revision))
        if commit is None:
            raise _missing("Revision")
        return commit

    def _create(self, asked: dict[str, Any]) -> None:
        if self.headers.get("Authorization") is None:
            raise _Answer(401, {"error": "Invalid username or password."})
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            raise _Answer(409, answer | {"error": "You already created this model repo"})
        private = asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        raise _Answer(200, answer)

    def _resolve(self, commit: Commit, path: str) -> None:
        if path not in commit.files:
            raise _Answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.sha)
        content = commit.files[path]
        headers = {"ETag": f'"{oid(path, content)}"', "X_Repo_Commit": commit.sha, "Accept_Ranges": "bytes"}
        if is_lfs(path, len(content)):
            headers |= {"X_Linked_ETag": headers["ETag"], "X_Linked_Size": str(len(content))}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            raise _Answer(206, content[first : last + 1], **headers)
        raise _Answer(200, content, **headers)

    def _lfs_batch(self, asked: list[dict[str, Any]]) -> None:
        def answer(item: dict[str, Any]) -> dict[str, Any]:
            if item["oid"] in self.hub.objects:
                return item  # no actions: nothing to upload
            href = f"{self.hub.url}/lfs/{item['oid']}"
            return item | {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}

        raise _Answer(200, {"transfer": "basic", "objects": [answer(item) for item in asked]})

    def _lfs_upload(self, sha256: str, verify: bool) -> None:
        if verify:
            raise _Answer(200 if sha256 in self.hub.objects else 404)
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise _Answer(400, {"error": "the content is not what its SHA-256 says"})
        self.hub.objects[sha256] = self.body
        raise _Answer(200)

    def _POST_preupload(self, repo: Repo, revision: str, _: str) -> None:
        known = self._commit(repo, revision).files

        def answer(item: dict[str, Any]) -> dict[str, Any]:
            path = item["path"]
            mode = "lfs" if is_lfs(path, item["size"]) else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False} | (
                {"oid": oid(path, known[path])} if path in known else {}
            )

        raise _Answer(200, {"files": [answer(item) for item in json.loads(self.body)["files"]]})

    def _POST_commit(self, repo: Repo, revision: str, _: str) -> None:
        files, message = dict(self._commit(repo, revision).files), ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in self.hub.objects:
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"])
                case other:
                    raise _Answer(400, {"error": f"{other}: {value}"})
        pull, branch = None, unquote(revision)
        if self.query.get("create_pr") == "1":
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            pull, branch = f"{self.hub.url}/{repo.name}/discussions/{number}", f"refs/pr/{number}"
        commit = repo.commit(branch, files, message, onto=unquote(revision))
        url = f"{self.hub.url}/{repo.name}/commit/{commit.sha}"
        raise _Answer(200, {"commitUrl": url, "commitOid": commit.sha, "pullRequestUrl": pull})

    def _POST_branch(self, repo: Repo, revision: str, _: str) -> None:
        name = unquote(revision)
        if name in repo.branches:
            raise _Answer(409, {"error": "Reference already exists"})
        repo.branches[name] = list(repo.branches[json.loads(self.body or b"{}").get("startingPoint", "main")])
        raise _Answer(201)

    def _GET_refs(self, repo: Repo, *_: str) -> None:
        branches: list[dict[str, str]] = []
        pulls: list[dict[str, str]] = []
        for name, log in repo.branches.items():
            is_pull = name.startswith("refs/")
            ref = {"name": name, "ref": name if is_pull else f"refs/heads/{name}", "targetCommit": log[-1].sha}
            (pulls if is_pull else branches).append(ref)
        raise _Answer(200, {"branches": branches, "converts": [], "tags": [], "pullRequests": pulls})

    def _GET_revision(self, repo: Repo, revision: str, _: str) -> None:
        commit = self._commit(repo, revision)
        names = [{"rfilename": name} for name in commit.files]
        info = {"_id": "0", "id": repo.name, "modelId": repo.name, "sha": commit.sha, "private": repo.private}
        raise _Answer(200, info | {"siblings": names, "tags": [], "downloads": 0, "likes": 0})

    def _GET_tree(self, repo: Repo, revision: str, folder: str) -> None:
        prefix = f"{unquote(folder)}/" if folder else ""
        found = []
        for path, content in self._commit(repo, revision).files.items():
            if path.startswith(prefix):
                item = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                lfs = {"oid": oid(path, content), "size": len(content), "pointerSize": 130}
                found.append(item | ({"lfs": lfs} if is_lfs(path, len(content)) else {}))
        if prefix and not found:
            raise _missing("Entry")
        raise _Answer(200, json.dumps(found).encode())
