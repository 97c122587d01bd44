"""A hub of one process: takes commits of models over HTTP and gives their files back.

`python -m helpers.hub_server FOLDER` prints its port, and keeps each repository in FOLDER.
"""

import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The few requests that huggingface_hub makes for a model."""

    def _json(self, value, status=200):
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, body, headers, status=200):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        path = urlparse(self.path).path
        body = self._body()
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self._json({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    file = self.server.folder / repo / entry["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(entry["value"]["content"]))
            url = f"http://{self.headers['Host']}/{repo}/commit/{SHA}"
            self._json({"success": True, "commitOid": SHA, "commitUrl": url})
        else:
            self._json({"error": path}, 404)

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            root = self.server.folder / repo
            if not root.is_dir():
                self.send_header_error()
                return
            files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
            if "/tree/" in path:
                tree = [
                    {"type": "file", "path": f, "size": (root / f).stat().st_size, "oid": "0" * 40}
                    for f in files
                ]
                self._json(tree)
            else:
                siblings = [{"rfilename": f} for f in files]
                self._json({"id": repo, "sha": SHA, "siblings": siblings})
            return
        owner, name, _, _, *file = path.strip("/").split("/")
        body = (self.server.folder / owner / name / "/".join(file)).read_bytes()
        self._send(body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'})

    do_HEAD = do_GET

    def send_header_error(self):
        body = json.dumps({"error": "Repository not found"}).encode()
        self._send(body, {"X-Error-Code": "RepoNotFound"}, 404)

    def log_message(self, *_):
        """Silent."""


def serve(folder: Path) -> ThreadingHTTPServer:
    """A server on a free port; the caller runs and stops it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder = folder
    return server


if __name__ == "__main__":
    hub = serve(Path(sys.argv[1]))
    print(hub.server_address[1], flush=True)
    hub.serve_forever()
