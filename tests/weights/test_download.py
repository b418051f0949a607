"""Downloads by the real huggingface_hub, from a hub of our own on this machine: what is fetched, cached and refused.

Slow: about 20 s on one core, most of it the start of child processes.
"""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.weights.checkpoints import save_hf

pytestmark = pytest.mark.slow
pytest.importorskip("huggingface_hub", reason="the extra 'hf' is not installed")

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download of one file uses; counts what it is asked."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        owner, _, rest = self.path.partition("/resolve/")
        content = self._content(owner, rest.partition("/")[2])
        self.send_response(200 if content is not None else 404)
        if content is None:
            code = "EntryNotFound" if owner == "/gpt2" else "RepoNotFound"
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body:
            self.wfile.write(content or b"")

    def _content(self, owner: str, name: str) -> bytes | None:
        if self.path == "/":
            return b""
        path = self.folder / name
        return path.read_bytes() if owner == "/gpt2" and name and path.is_file() else None

    def log_message(self, *_: object) -> None:
        """Nothing on the tests' output."""


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    save_hf(tmp_path / "served")
    Hub.folder, Hub.asked = tmp_path / "served", []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def sample(tmp_path: Path, endpoint: str, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE", "TRANSFORM"))}
    known = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "nanogpt", "sample", name, "--prompt=1", "--max_new_tokens=3", "--device=cpu"]
    return subprocess.run(
        command, cwd=ROOT, env={**clean, **known, **variables}, capture_output=True, text=True, timeout=200
    )


def test_weights_are_downloaded_once(tmp_path: Path, endpoint: str) -> None:
    done = sample(tmp_path, endpoint, "hf:gpt2")
    assert done.returncode == 0, done.stderr
    assert [line for line in Hub.asked if line.startswith("GET") and line.endswith("/model.safetensors")]
    assert (tmp_path / "home" / "hub" / "models--gpt2" / "snapshots" / COMMIT / "model.safetensors").is_file()
    Hub.asked.clear()
    again = sample(tmp_path, endpoint, "hf:gpt2", HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert Hub.asked == []


def test_what_the_hub_does_not_have_is_one_line(tmp_path: Path, endpoint: str) -> None:
    missing = sample(tmp_path, endpoint, "hf:someone/else")
    assert missing.returncode == 2
    assert missing.stderr == "nanogpt: hf:someone/else: no such model on the hub, or a private one: `hf auth login`\n"
    gone = sample(tmp_path, "http://127.0.0.1:9", "hf:gpt2")
    assert gone.returncode == 2
    assert gone.stderr.endswith("and the hub cannot be reached; give a local folder instead\n")
