"""The loopback Hub's answers, one function per route."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.card_rules import validate
from tests.support.hub_state import Answer, Collection, Entry, Pull, Refusal, Repo, now


if TYPE_CHECKING:
    from tests.support.loopback_hub import Handler, LoopbackHub

TOKEN = "hf_loopbackWriterCanary"
STRANGER = "hf_loopbackStranger"  # a valid token of somebody who may write nowhere here
USERS = {TOKEN: "alice", STRANGER: "mallory"}
REGULAR_MAX = 10 << 20


class Call:
    """One request, with what the routes ask of it."""

    def __init__(self, http: Handler, body: bytes, match: re.Match):
        self.hub, self.headers, self.body, self.match = http.hub, http.headers, body, match
        self.query = dict(parse_qsl(urlsplit(http.path).query))
        self.token = (http.headers.get("Authorization") or "").removeprefix("Bearer ")

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def kind(self) -> str:
        return self.match["kind"] or "models"  # whose web addresses begin with the owner

    @property
    def address(self) -> str:
        """Of the repository's page."""
        return f"{self.hub.url}/{'' if self.kind == 'models' else f'{self.kind}/'}{self.match['repo']}"

    def user(self) -> str | None:
        if self.token and self.token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS.get(self.token)

    def repo(self, write: bool = False) -> Repo:
        """A private repository looks missing to everybody but its owner."""
        user, repo = self.user(), self.hub.repos.get(f"{self.kind}/{self.match['repo']}")
        owner = user is not None and self.match["repo"].startswith(f"{user}/")
        if repo is None or (repo.private and not owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not owner:
            raise Refusal(403 if user else 401, "You are not allowed to write to this repository")
        return repo

    def pull(self, write: bool = False) -> Pull:
        pulls = self.repo(write).pulls
        if not 0 < (num := int(self.match["num"])) <= len(pulls):
            raise Refusal(404, "no such discussion")
        return pulls[num - 1]


# Accounts and repositories


def _whoami(hub: LoopbackHub, call: Call) -> Answer:
    if (user := call.user()) is None:
        raise Refusal(401, "Invalid username or password.")
    return Answer({"type": "user", "name": user, "fullname": user, "orgs": []})


def _create_repo(hub: LoopbackHub, call: Call) -> Answer:
    user, asked = call.user(), call.json
    owner = asked.get("organization") or user
    name = f"{asked['type']}s/{owner}/{asked['name']}"
    if user is None or owner != user:
        raise Refusal(403 if user else 401, f"You don't have the rights to create a {asked['type']} under {owner}")
    if name in hub.repos:
        raise Refusal(409, f"You already created {name}", url=f"{hub.url}/{name}")
    hub.new_repo(name, private=asked.get("visibility") == "private")
    address = name.removeprefix("models/")
    return Answer({"url": f"{hub.url}/{address}", "name": f"{owner}/{asked['name']}"})


def _info(hub: LoopbackHub, call: Call) -> Answer:
    repo = call.repo()
    sha = repo.resolve(call.match.groupdict().get("rev") or "main")
    commit = repo.commits[sha]
    about = {"id": call.match["repo"], "sha": sha, "private": repo.private, "lastModified": commit.date, "tags": []}
    flags = {"gated": "auto" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0}
    return Answer({"_id": sha[:24], **about, **flags, "siblings": [{"rfilename": path} for path in commit.tree]})


def _rows(hub: LoopbackHub, tree: dict[str, Entry]) -> list[dict[str, Any]]:
    """Files and the folders above them, as the Hub lists them."""
    rows: dict[str, dict[str, Any]] = {}
    for path, entry in tree.items():
        for folder in list(Path(path).parents)[:-1]:
            oid = hashlib.sha1(str(folder).encode()).hexdigest()
            rows[str(folder)] = {"type": "directory", "path": str(folder), "oid": oid, "size": 0}
        rows[path] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.sha256:
            rows[path]["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
            if name := hub.cas.names.get(entry.sha256):
                rows[path]["xetHash"] = name
    return [rows[path] for path in sorted(rows)]


def _tree(hub: LoopbackHub, call: Call) -> Answer:
    repo, below = call.repo(), call.match["path"]
    rows = [row for row in _rows(hub, repo.tree(call.match["rev"])) if not below or row["path"].startswith(f"{below}/")]
    if below and not rows:
        raise Refusal(404, f"{below} does not exist", "EntryNotFound")
    if call.query.get("recursive", "").lower() != "true":
        depth = below.count("/") + 1 if below else 0
        rows = [row for row in rows if row["path"].count("/") == depth]
    return Answer(rows)


def _paths_info(hub: LoopbackHub, call: Call) -> Answer:
    repo = call.repo()
    if "json" in call.headers.get("Content-Type", ""):
        paths = call.json["paths"]
    else:
        paths = [value for name, value in parse_qsl(call.body.decode()) if name == "paths"]
    return Answer([row for row in _rows(hub, repo.tree(call.match["rev"])) if row["path"] in paths])


def _refs(hub: LoopbackHub, call: Call) -> Answer:
    listed: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
    for ref, sha in call.repo().refs.items():
        kind = {"heads": "branches", "tags": "tags"}.get(ref.split("/")[1])
        if kind:
            listed[kind].append({"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": sha})
    return Answer(listed)


def _tag(hub: LoopbackHub, call: Call) -> Answer:
    repo, ref = call.repo(write=True), f"refs/tags/{call.json['tag']}"
    if ref in repo.refs:
        raise Refusal(409, "Tag reference exists already")
    repo.refs[ref] = repo.resolve(call.match["rev"])
    return Answer({})


def _resolve(hub: LoopbackHub, call: Call) -> Answer:
    repo = call.repo()
    if repo.gated and not call.match["repo"].startswith(f"{call.user()}/"):
        raise Refusal(403 if call.user() else 401, "Access to this dataset is restricted", "GatedRepo")
    sha = repo.resolve(call.match["rev"])
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    entry = repo.tree(sha).get(call.match["path"])
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    if entry.sha256 is None:
        return Answer(hub.content(entry), headers=headers | {"ETag": f'"{entry.oid}"'})
    headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size), "Location": hub.signed(entry.sha256)}
    if name := hub.cas.names.get(entry.sha256):
        route = f"{hub.url}/api/{call.kind}/{call.match['repo']}/xet-read-token/{sha}"
        headers |= {"X-Xet-Hash": name, "Link": f'<{route}>; rel="xet-auth"'}
    return Answer(status=302, headers=headers)


# Writing


def _preupload(hub: LoopbackHub, call: Call) -> Answer:
    repo = call.repo(write=True)
    ignored = hub.content(repo.tree()[".gitignore"]).decode().split() if ".gitignore" in repo.tree() else []
    files = []
    for asked in call.json["files"]:
        path, old = asked["path"], repo.tree(call.match["rev"]).get(asked["path"])
        large = path.endswith((".parquet", ".safetensors")) or asked["size"] > REGULAR_MAX
        reply = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": path in ignored}
        files.append(reply | ({"oid": old.sha256 or old.oid} if old else {}))
    return Answer({"files": files})


def _lfs_batch(hub: LoopbackHub, call: Call) -> Answer:
    call.repo(write=True)
    objects = []
    for asked in call.json["objects"]:
        upload = {"upload": {"href": hub.signed(asked["oid"])}}
        objects.append(asked if asked["oid"] in hub.objects else asked | {"actions": upload})
    return Answer({"transfer": "basic", "objects": objects})


def _storage(hub: LoopbackHub, call: Call) -> Answer:
    """Whoever has the signed address may read or write; a token has no business here."""
    sha256 = call.match["sha256"]
    if call.query.get("signature") != hub._signature(sha256) or call.token:
        raise Refusal(403, "bad signature" if not call.token else "a token was sent to the storage")
    if call.match.string and call.body:
        if hashlib.sha256(call.body).hexdigest() != sha256:
            raise Refusal(400, "these bytes have another sha256")
        hub.objects[sha256] = call.body
        return Answer()
    return Answer(hub.objects[sha256], headers={"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _commit(hub: LoopbackHub, call: Call) -> Answer:
    repo, lines = call.repo(write=True), [json.loads(line) for line in call.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    target = call.match["rev"] if call.match["rev"].startswith("refs/") else f"refs/heads/{call.match['rev']}"
    head, parent = repo.resolve(target), header.get("parentCommit")
    propose = call.query.get("create_pr") == "1"
    if parent and parent != head and not propose:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    parent = repo.resolve(parent or head)
    tree = dict(repo.tree(parent))
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            tree[value["path"]] = hub._blob(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refusal(400, f"{value['path']} points to an object that was not uploaded")
            tree[value["path"]] = hub.pointer(value["oid"], value["size"])
        elif line["key"] == "deletedFile" and tree.pop(value["path"], None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    reply = {}
    if propose:
        repo.pulls.append(pull := Pull(len(repo.pulls) + 1, header["summary"], str(call.user())))
        target = f"refs/pr/{pull.num}"
        reply["pullRequestUrl"] = f"{call.address}/discussions/{pull.num}"
    sha = repo.add(target, parent, dict(sorted(tree.items())), header["summary"])
    url = f"{call.address}/commit/{sha}"
    return Answer({"success": True, "commitOid": sha, "commitUrl": url, **reply})


def _validate_yaml(hub: LoopbackHub, call: Call) -> Answer:
    """Anybody may ask; `create_commit` does before it uploads anything."""
    errors, warnings = validate(call.json["content"], call.json["repoType"])
    reply = {"errors": [{"message": each} for each in errors], "warnings": [{"message": each} for each in warnings]}
    return Answer(reply, status=400 if errors else 200)


# Collections


def _collection(hub: LoopbackHub, call: Call) -> Answer:
    collection = hub.collections.get(call.match["slug"])
    if collection is None or (collection.private and call.user() != collection.owner):
        raise Refusal(404, "Collection not found")
    return Answer(collection.as_json())


def _create_collection(hub: LoopbackHub, call: Call) -> Answer:
    user, asked = call.user(), call.json
    if user is None or asked["namespace"] != user:
        raise Refusal(403 if user else 401, f"You don't have the rights to create a collection under {asked['namespace']}")
    slug = f"{user}/{re.sub('[^a-z0-9]+', '-', asked['title'].lower())}-"
    same = [each.slug for each in hub.collections.values() if (each.owner, each.title) == (user, asked["title"])]
    if same:
        raise Refusal(409, "You already have a collection of this title", slug=same[0])
    slug += hashlib.sha1(slug.encode()).hexdigest()[:24]
    hub.collections[slug] = Collection(slug, asked["title"], user, asked["private"])
    return Answer(hub.collections[slug].as_json())


def _add_item(hub: LoopbackHub, call: Call) -> Answer:
    collection, item = hub.collections.get(call.match["slug"]), call.json["item"]
    if collection is None or call.user() != collection.owner:
        raise Refusal(404 if collection is None else 403, "You may not write to this collection")
    if f"{item['type']}s/{item['id']}" not in hub.repos:
        raise Refusal(404, f"{item['type']} {item['id']} not found")
    if item in collection.items:
        raise Refusal(409, "This item is in the collection already")
    collection.items.append(item)
    return Answer(collection.as_json())


# Pull requests


def _about(call: Call, pull: Pull) -> dict[str, Any]:
    about = {"num": pull.num, "title": pull.title, "status": pull.status, "author": {"name": pull.author}}
    repo = {"name": call.match["repo"], "type": call.kind.removesuffix("s")}
    return about | {"isPullRequest": True, "createdAt": now(), "repo": repo}


def _discussions(hub: LoopbackHub, call: Call) -> Answer:
    pulls = [pull for pull in call.repo().pulls if call.query.get("author") in (None, pull.author)]
    return Answer({"discussions": [_about(call, pull) for pull in pulls], "count": len(pulls), "start": 0})


def _discussion(hub: LoopbackHub, call: Call) -> Answer:
    pull = call.pull()
    changes = {"base": "refs/heads/main", "mergeCommitId": pull.merged}
    return Answer(_about(call, pull) | {"events": [], "diff": "", "filesWithConflicts": [], "changes": changes})


def _set_status(hub: LoopbackHub, call: Call) -> Answer:
    pull = call.pull(write=True)
    if pull.status == "merged":
        raise Refusal(400, "This pull request is merged")
    pull.status = call.json["status"]
    event = {"id": "1", "type": "status-change", "createdAt": now(), "author": {"name": pull.author}}
    return Answer({"newStatus": event | {"data": {"status": pull.status}}})


def _merge(hub: LoopbackHub, call: Call) -> Answer:
    pull = call.pull(write=True)
    if pull.status != "open":
        raise Refusal(400, f"This pull request is {pull.status}")
    call.repo().merge(pull)
    return Answer({})


# Xet


def _xet_token(hub: LoopbackHub, call: Call) -> Answer:
    call.repo(write=call.match["mode"] == "write").resolve(call.match["rev"])
    expiry = int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": hub.storage, "X-Xet-Access-Token": hub._key, "X-Xet-Token-Expiration": str(expiry)}
    return Answer({"accessToken": hub._key, "exp": expiry, "casUrl": hub.storage}, headers=headers)


def _xorb(hub: LoopbackHub, call: Call) -> Answer:
    if call.body:
        hub.cas.xorbs[call.match["hash"]] = call.body
        return Answer({"was_inserted": True})
    return Answer(hub.cas.xorbs[call.match["hash"]], headers={"Accept-Ranges": "bytes"})


def _shard(hub: LoopbackHub, call: Call) -> Answer:
    try:
        hub.objects |= hub.cas.add_shard(call.body)
    except (KeyError, ValueError) as error:
        raise Refusal(400, f"bad shard: {error}") from error
    return Answer({"result": 1})


def _reconstruction(hub: LoopbackHub, call: Call) -> Answer:
    reply = hub.cas.reconstruction(call.match["hash"], call.headers.get("Range"), f"{hub.storage}/xorb")
    return Answer(reply) if reply else Answer(status=416)


API = r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)"
WEB = r"(?:/(?P<kind>datasets))?/(?P<repo>[^/]+/[^/]+?)"
REV = r"(?P<rev>refs/pr/\d+|[^/]+)"
COLLECTION = r"/api/collections/(?P<slug>[^/]+/[^/]+)"
HASH = r"(?P<hash>[0-9a-f]{64})"
ROUTES: list[tuple[str, str, Callable[[LoopbackHub, Call], Answer]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/repos/create", _create_repo),
    ("POST", "/api/validate-yaml", _validate_yaml),
    ("POST", "/api/collections", _create_collection),
    ("GET", COLLECTION, _collection),
    ("POST", f"{COLLECTION}/items", _add_item),
    ("GET", API, _info),
    ("GET", f"{API}/revision/{REV}", _info),
    ("GET", f"{API}/tree/{REV}(?:/(?P<path>.+))?", _tree),
    ("POST", f"{API}/paths-info/{REV}", _paths_info),
    ("GET", f"{API}/refs", _refs),
    ("POST", f"{API}/tag/{REV}", _tag),
    ("POST", f"{API}/preupload/{REV}", _preupload),
    ("POST", f"{API}/commit/{REV}", _commit),
    ("GET", f"{API}/discussions", _discussions),
    ("GET", API + r"/discussions/(?P<num>\d+)", _discussion),
    ("POST", API + r"/discussions/(?P<num>\d+)/status", _set_status),
    ("POST", API + r"/discussions/(?P<num>\d+)/merge", _merge),
    ("GET", f"{API}/xet-(?P<mode>read|write)-token/{REV}", _xet_token),
    ("POST", rf"{WEB}\.git/info/lfs/objects/batch", _lfs_batch),
    ("HEAD", f"{WEB}/resolve/{REV}/(?P<path>.+)", _resolve),
    ("GET", f"{WEB}/resolve/{REV}/(?P<path>.+)", _resolve),
    ("GET", "/storage/(?P<sha256>[0-9a-f]{64})", _storage),
    ("PUT", "/storage/(?P<sha256>[0-9a-f]{64})", _storage),
    ("POST", f"/v1/xorbs/default/{HASH}", _xorb),
    ("GET", f"/xorb/{HASH}", _xorb),
    ("POST", "/v1/shards", _shard),
    ("GET", f"/v1/reconstructions/{HASH}", _reconstruction),
]
