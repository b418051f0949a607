"""A Ray cluster seen from outside: is Ray installed, does the cluster answer, does it take our token, what has it.

The cluster is asked by a child process. Ray's own attempt takes two minutes at a dead address and prints a line per
second for a wrong token; the child is ended at the first line that tells what is wrong.
"""

import importlib.metadata
import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.launchers.settings import RaySettings, memory_bytes
from nanogpt.config import UserError

PROBE_SECONDS = 60.0
INSTALL = 'pip install "ray[default]"'
_MARK = "cluster: "
_PROBE = f"""
import json, sys
try:
    import ray
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
    nodes = [[node["NodeManagerHostname"], node["Resources"]] for node in ray.nodes() if node["Alive"]]
    facts = dict(version=ray.__version__, nodes=nodes)
except BaseException as error:
    facts = dict(error=" ".join(f"{{type(error).__name__}}: {{error}}".split()))
print("\\n{_MARK}" + json.dumps(facts), flush=True)
"""
_TOKEN = "RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN must be set here and where every node was started"
# What Ray or its core prints, and what it means. The first that fits counts.
_SIGNS = {
    "InvalidAuthToken": f"the cluster refused the token; {_TOKEN}",
    "no authentication token was found": f"RAY_AUTH_MODE asks for a token, and there is none; {_TOKEN}",
    "Could not find any running Ray": "this machine is in no cluster; `ray start --head` starts one",
    "Failed to connect to GCS": "no cluster answers; `ray start --head` starts one, launcher.address names another",
    "Failed to connect to Ray cluster": f"the cluster does not let us in; {_TOKEN}",
}


@dataclass(frozen=True)
class Cluster:
    """The nodes that live: host and resources (`CPU`, `GPU`, `memory` in bytes), and Ray's version."""

    version: str
    nodes: list[tuple[str, dict[str, float]]]

    def total(self, resource: str) -> float:
        return sum(resources.get(resource, 0.0) for _, resources in self.nodes)


def ray_version() -> str | None:
    """Ray's version; None where it is not installed. (A folder called `ray` imports, too.)"""
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return None


def ask_cluster(address: str, seconds: float = PROBE_SECONDS) -> Cluster:
    """What a cluster has. Raises UserError in one line: no Ray, no cluster, another token, another version."""
    if ray_version() is None:
        raise UserError(f"launcher: ray: Ray is not installed; {INSTALL}, on the nodes too")
    if address == "local":
        raise UserError("launcher.address: 'local' would be a cluster of its own; on one machine take launcher: local")
    # -P: the folder we are in may hold a ray.py, such as this package's.
    command = [sys.executable, "-P", "-c", _PROBE, address]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    with child:
        try:
            facts = _read_facts(child.stdout or ())
        finally:
            timer.cancel()
            child.kill()
    if "error" in facts:
        raise UserError(f"launcher: ray: address {address!r}: {facts['error']}")
    return Cluster(facts["version"], [(host, resources) for host, resources in facts["nodes"]])


def _read_facts(lines: Iterable[str]) -> dict[str, Any]:
    """The child's answer, or `error` at the first line that tells what is wrong."""
    last = "it did not answer in time"
    for line in lines:
        meaning = explain(line)
        if meaning:
            return {"error": meaning}
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
        last = line.strip() or last
    return {"error": last}


def explain(said: str) -> str:
    """What one of Ray's messages means for a person; empty when it is none of those known."""
    return next((meaning for sign, meaning in _SIGNS.items() if sign in said), "")


def demands(settings: RaySettings) -> dict[str, float]:
    """The resources of one worker, under Ray's names."""
    wanted = {"CPU": settings.cpus, "GPU": settings.gpus}
    if settings.memory is not None:
        wanted["memory"] = memory_bytes(settings.memory)
    return {name: amount for name, amount in wanted.items() if amount}


def room(cluster: Cluster, wanted: Mapping[str, float]) -> int:
    """How many workers the cluster holds at a time when nothing else runs in it."""
    return sum(min(int(node.get(name, 0) / amount) for name, amount in wanted.items()) for _, node in cluster.nodes)


def check_room(cluster: Cluster, settings: RaySettings) -> int:
    """How many workers fit at a time. Raises UserError when no node has what one worker asks for.

    With `autoscaling` a node that has it may come later.
    """
    wanted = demands(settings)
    workers = room(cluster, wanted)
    if not workers and not settings.autoscaling:
        largest = {name: max((node.get(name, 0) for _, node in cluster.nodes), default=0) for name in wanted}
        raise UserError(
            f"launcher: ray: no node has {_amounts(wanted)} for a worker; the most on one node: {_amounts(largest)}"
            f" (with `autoscaling: true` workers wait for a node that has)"
        )
    return workers


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {n: f"{a / 2**30:.3g}G" if n == "memory" else f"{a:g}" for n, a in resources.items()}
    return ", ".join(f"{amount} {name}" for name, amount in shown.items())
