"""A Hub on 127.0.0.1, as much of it as the huggingface_hub client needs to make a repository, fill it and load from it.

Written from what the client sends. Contents are kept in memory; `hub.commits`, `hub.puts` and `hub.requests` tell what
happened, and `hub.before` is called with (method, path) before each request is answered, so that a test can hold it, or
refuse it by returning a status, or a status and what the Hub says."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "standin" * 4
LFS = (".safetensors", ".png", ".gguf")


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # name: {"private", "files": {path: content}}, and of some "branches": {name: files}, "tags": {name: commit} and
        # "history": {commit: files}. A Space is under "spaces/USER/NAME", with its "sdk"
        self.repositories = {}
        self.objects = {}  # of LFS: sha256: content
        self.commits, self.puts, self.requests = [], [], []
        self.before = lambda method, path: None

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


@contextlib.contextmanager
def serving():
    """A Hub that answers while the context lasts."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()


@contextlib.contextmanager
def talking(monkeypatch, token=None):
    """A Hub that this process talks to, with its own cache in the working directory, and with `token`."""
    with serving() as hub:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        constants = {"HF_TOKEN_PATH": str(Path("no-token").resolve()), "HF_HUB_CACHE": str(Path("hf-cache").resolve())}
        constants |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "ENDPOINT": hub.url}
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        constants["HUGGINGFACE_CO_URL_TEMPLATE"] = template
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield hub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body waits 40 ms for its headers to be acknowledged

    def log_message(self, *_):
        pass

    def answer(self, status=200, value=None, body=None, **headers):
        body = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        url = urlsplit(self.path)
        path, hub = url.path.strip("/"), self.server
        hub.requests.append((self.command, path))
        if (status := hub.before(self.command, path)) is not None:
            code, said = status if isinstance(status, tuple) else (status, {"error": "as the test wants it"})
            return self.answer(code, said)
        if path.startswith("lfs/"):  # signed addresses carry no token
            return self.lfs_object(path.split("/")[1])
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not known and "Authorization" in self.headers:
            return self.answer(401, {"error": "Invalid username or password."})
        if not known:
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if path == "api/repos/create":
            return self.create(json.loads(self.body))
        if path == "api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        parts = path.split("/")
        if path.startswith("api/models/"):
            name, rest = self.named(parts[2:])
            return self.api(name, rest, parse_qs(url.query))
        if path.startswith("api/spaces/"):
            name, rest = self.named(parts[1:])
            return self.api(name, rest, parse_qs(url.query))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(self.body))
        name, rest = self.named(parts)
        if len(rest) > 2 and rest[0] == "resolve":
            return self.resolve(name, rest[1], "/".join(rest[2:]))
        return self.answer(404, {"error": "no such place"}, X_Error_Code="EntryNotFound")

    def named(self, parts):
        """A repository and the rest of an address. Some old ones, like gpt2, have no owner in their name."""
        length = 3 if parts[0] == "spaces" else 1 if parts[0] in self.server.repositories else 2
        return "/".join(parts[:length]), parts[length:]

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def create(self, asked):
        name, kind = f"{asked.get('organization') or 'me'}/{asked['name']}", asked.get("type") or "model"
        name = f"spaces/{name}" if kind == "space" else name
        private = asked.get("private", asked.get("visibility") == "private")
        if name in self.server.repositories:
            return self.answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        begun = {"index.html": b"<h1>Welcome to your static Space!</h1>", "style.css": b"h1 {font-size: 16px}"}
        self.server.repositories[name] = {
            "private": private,
            "files": {
                ".gitattributes": b"*.safetensors filter=lfs\n",
                **(begun if asked.get("sdk") == "static" else {}),
            },
            **({"sdk": asked["sdk"]} if kind == "space" else {}),
        }
        return self.answer(200, {"url": f"{self.server.url}/{name}", "id": name, "name": name})

    def api(self, name, rest, query):
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if rest and rest[0] in ("branch", "tag", "refs"):
            return self.refs(repository, *rest)
        if not rest or rest[0] == "revision":
            held = at(repository, unquote(rest[1]) if rest else "main")
            if held is None:
                return self.answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
            siblings = [self.described(path, content, "blobs" in query) for path, content in held.items()]
            return self.answer(
                200,
                {
                    "id": name,
                    "modelId": name,
                    "private": repository["private"],
                    "sha": head(held),
                    "siblings": siblings,
                },
            )
        if rest[0] == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
                for path, content in repository["files"].items()
            ]
            return self.answer(200, entries)
        if rest[0] == "preupload":
            answers = []
            for file in json.loads(self.body)["files"]:
                lfs, there = file["path"].endswith(LFS), repository["files"].get(file["path"])
                oid = None if there is None else hashlib.sha256(there).hexdigest() if lfs else git_sha1(there)
                answers.append(
                    {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
                )
            return self.answer(200, {"files": answers})
        if rest[0] == "commit":
            return self.commit(name, repository, rest[1], [json.loads(line) for line in self.body.splitlines()])
        return self.answer(404, {"error": "no such place"}, X_Error_Code="EntryNotFound")

    def described(self, path, content, with_hashes):
        if not with_hashes:
            return {"rfilename": path}
        if path.endswith(LFS):
            lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            return {"rfilename": path, "size": len(content), "blobId": "0" * 40, "lfs": lfs}
        return {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}

    def batch(self, asked):
        objects = []
        for item in asked["objects"]:
            address = f"{self.server.url}/lfs/{item['oid']}"
            actions = (
                {}
                if item["oid"] in self.server.objects
                else {"actions": {"upload": {"href": address}, "verify": {"href": address}}}
            )
            objects.append({"oid": item["oid"], "size": item["size"], **actions})
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_object(self, oid):
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                return self.answer(400, {"error": "not that object"})
            self.server.objects[oid] = self.body
            self.server.puts.append(oid)
        return self.answer(200 if oid in self.server.objects else 404, {})

    def refs(self, repository, kind, name=None):
        branches, tags = repository.setdefault("branches", {}), repository.setdefault("tags", {})
        if kind == "refs":
            listed = {"main": head(repository["files"]), **{branch: head(files) for branch, files in branches.items()}}
            named = {"branches": ("heads", listed), "tags": ("tags", tags)}
            found = {
                key: [{"name": one, "ref": f"refs/{word}/{one}", "targetCommit": sha} for one, sha in refs.items()]
                for key, (word, refs) in named.items()
            }
            return self.answer(200, {**found, "converts": []})
        if kind == "branch":
            if name in branches:
                return self.answer(409, {"error": "Reference already exists"})
            branches[name] = dict(repository["files"])
            return self.answer(200, {})
        tag = json.loads(self.body)["tag"]
        if tag in tags:
            return self.answer(409, {"error": "Tag reference exists already"})
        tags[tag] = name
        repository.setdefault("history", {})[name] = at(repository, name)
        return self.answer(200, {})

    def commit(self, name, repository, branch, lines):
        before = repository.get("branches", {}).get(branch, repository["files"])
        files = dict(before)
        repository.setdefault("history", {})[head(before)] = before
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "header" and value.get("parentCommit", head(before)) != head(before):
                return self.answer(412, {"error": "the branch has moved on"})
        if branch in repository.get("branches", {}):
            repository["branches"][branch] = files
        else:
            repository["files"] = files
        self.server.commits.append((name, [line["value"]["path"] for line in lines[1:]]))
        return self.answer(
            200,
            {"commitUrl": f"{self.server.url}/{name}/commit/{head(files)}", "commitOid": head(files), "success": True},
        )

    def resolve(self, name, revision, path):
        repository = self.server.repositories.get(name)
        held = at(repository, unquote(revision)) if repository else None
        if held is None or path not in held:
            return self.answer(
                404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound" if repository else "RepoNotFound"
            )
        content = held[path]
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LFS) else git_sha1(content)
        return self.answer(
            200, body=content, X_Repo_Commit=head(held), ETag=f'"{etag}"', Content_Type="application/octet-stream"
        )


def at(repository, revision):
    """The files at a branch or commit, None if there is no such one."""
    branches = {"main": repository["files"], **repository.get("branches", {})}
    commits = {**repository.get("history", {}), **{head(files): files for files in branches.values()}}
    if revision in branches:
        return branches[revision]
    return commits.get(repository.get("tags", {}).get(revision, revision))


def head(files):
    """The commit of some files, which here is a hash of their contents."""
    return hashlib.sha1(repr(sorted((path, git_sha1(content)) for path, content in files.items())).encode()).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
