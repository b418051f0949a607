"""A stand-in for the engine that honours its command line and trains nothing: fast, torch-free, told how to misbehave.

The seed of a run says what happens to it: see `BEHAVIOURS`. A run counts its steps, writes a checkpoint after every one
and goes on from the furthest checkpoint of an earlier attempt; `steps.log` in its folder names every step it ever did.
"""

import faulthandler
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nanogpt.config import Config, run_id
from nanogpt.configfile import load_config
from nanogpt.describe import horizon_steps
from nanogpt.record import Record, attempt_folder, write_record

BEHAVIOURS = {
    100: "raise", 101: "segfault", 102: "diverge", 103: "mistake", 104: "silent", 105: "unresolvable",
    106: "hungry", 107: "endless", 108: "abort late", 109: "disk full", 110: "deaf", 111: "raise", 112: "raise",
}  # fmt: skip
OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: tried 1024 bytes"
STEP_SECONDS = "FAKE_STEP_SECONDS"
WELL_BEHAVED = "FAKE_WELL_BEHAVED"  # whatever the seed says


def main(argv: list[str]) -> int:
    if argv[0] == "describe":
        print(json.dumps(describe_many(json.load(sys.stdin))))
        return 0
    if argv[0] == "throughput":
        return measure()
    folder = Path(argv[1])
    options = dict(zip(argv[2::2], argv[3::2], strict=True))
    if "--nproc" in options:
        print(f"in {options['--nproc']} processes")
    before = signal.getsignal(signal.SIGTERM)
    try:
        return train(folder, int(options["--attempt"]), Path(options["--fence"]), int(options.get("--parent_fd", -1)))
    finally:
        signal.signal(signal.SIGTERM, before)  # in the debugger's process, signals are the debugger's


def describe_many(trees: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [describe(Config.model_validate(tree)) for tree in trees]


def describe(config: Config) -> dict[str, Any]:
    """Made-up sizes that grow as they should; a vocabulary of `auto` is resolved."""
    if BEHAVIOURS.get(config.seed) == "unresolvable":
        return {"error": "the corpus is nowhere to be found"}
    resolved = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": 256})})
    n_params = 12 * config.model.n_layer * config.model.n_embd**2
    steps = horizon_steps(config, SimpleNamespace(n_params_non_embedding=n_params, flops_per_token=6 * n_params), 1000)
    tokens = steps * config.train.batch_size * config.model.block_size
    sizes = {"n_params": n_params, "n_params_non_embedding": n_params, "n_params_active": n_params}
    cost = {"flops_per_token": 6 * n_params, "flops": 6.0 * n_params * tokens, "steps": steps, "tokens": tokens}
    disk = {"memory_bytes": 16 * n_params, "checkpoint_bytes": 12 * n_params, "parameters": {"hidden": n_params}}
    tree = resolved.model_dump(mode="json")
    return {"config": tree, "id": run_id(resolved), **sizes, **cost, **disk, "files": {}, "train_tokens": 1000}


def measure() -> int:
    """Made-up speeds: a model twice as wide trains half as many tokens a second, at twice the FLOP/s."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        config = Config.model_validate(json.loads(line)["config"])
        costs = {"evaluation_seconds": 0.5, "setup_seconds": 0.25, "checkpoint_seconds": 0.0}
        speed = {"tokens_per_second": 1e6 / config.model.n_embd, "peak_memory_bytes": 1}
        error = {"error": "told to fail"} if BEHAVIOURS.get(config.seed) == "raise" else {}
        print(json.dumps({**speed, **costs, **error}), flush=True)
    return 0


def train(folder: Path, attempt: int, fence: Path, parent_fd: int) -> int:
    config = load_config(folder / "config.yaml")
    facts, home = describe(config), attempt_folder(folder, attempt)
    home.mkdir(parents=True, exist_ok=True)
    behaviour = "train" if os.environ.get(WELL_BEHAVED) else BEHAVIOURS.get(config.seed, "train")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    print(f"training {folder.name} with {config.runtime.threads} threads: {behaviour} on GPU {gpus}", flush=True)
    if behaviour == "mistake":
        print("the corpus is nowhere to be found", file=sys.stderr)
        return 2
    if behaviour == "silent":
        return 0
    if behaviour == "disk full":
        os.write(2, f"nanogpt: {home}/history.jsonl: No space left on device\n".encode())
        return 1
    if behaviour in ("endless", "deaf"):
        facts["steps"] = 10**9
    faulthandler.disable()  # a death that is part of a test needs no traceback
    step = _furthest(folder)
    stops = _StopRequests(-1 if behaviour == "deaf" else parent_fd)
    while step < facts["steps"]:
        if stops.asked:
            return _end(home, attempt, config, facts, step, "interrupted")
        step += 1
        if behaviour == "raise":
            return _end(home, attempt, config, facts, step, "failed", f"told to fail at {time.time()}")
        if behaviour == "hungry" and config.micro_batch_size > 1:
            return _end(home, attempt, config, facts, step, "failed", OUT_OF_MEMORY)
        if behaviour == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        with (folder / "steps.log").open("a") as log:
            log.write(f"{attempt} {step}\n")
        with (home / "history.jsonl").open("a") as history:
            tokens = facts["tokens"] * step // facts["steps"]
            line = {
                "step": step,
                "tokens": tokens,
                "flops": facts["flops_per_token"] * tokens,
                "train_loss": 5 - step / 100,
            }
            if step % (config.train.eval_interval or facts["steps"]) == 0 or step == facts["steps"]:
                line["val_loss"] = loss_at(config, facts, step)
            history.write(json.dumps(line) + "\n")
        time.sleep(float(os.environ.get(STEP_SECONDS, "0.001")))
        if fence.exists():
            return 1
        (home / f"checkpoint-{step}.pt").touch()
    status = _end(home, attempt, config, facts, step, "diverged" if behaviour == "diverge" else "completed")
    if behaviour == "abort late":
        os.abort()
    return status


def loss_at(config: Config, facts: dict[str, Any], step: int) -> float:
    """Falls with the steps. With FAKE_LOSS=bowl it is lowest at a learning rate of 1e-2 and a weight decay of 0.1."""
    bowl = (math.log10(config.optimizer.learning_rate) + 2) ** 2 + 10 * (config.optimizer.weight_decay - 0.1) ** 2
    tuned = bowl if os.environ.get("FAKE_LOSS") == "bowl" else 0.0
    return 2 + 100 / facts["n_params"] + tuned + (1 - step / facts["steps"])


def _furthest(folder: Path) -> int:
    return max((int(path.stem.partition("-")[2]) for path in folder.glob("attempts/*/checkpoint-*.pt")), default=0)


class _StopRequests:
    """SIGTERM, or the end of the parent's pipe."""

    def __init__(self, parent_fd: int) -> None:
        self._parent_fd, self._signalled = parent_fd, False
        if parent_fd >= 0:
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._signalled = True

    @property
    def asked(self) -> bool:
        gone = self._parent_fd >= 0 and bool(select.select([self._parent_fd], [], [], 0)[0])
        return self._signalled or gone


def _end(
    home: Path, attempt: int, config: Config, facts: dict[str, Any], step: int, status: Any, message: str = ""
) -> int:
    evaluated = step - step % (config.train.eval_interval or facts["steps"]) if step < facts["steps"] else step
    loss = loss_at(config, facts, evaluated) if evaluated and status in ("completed", "interrupted") else None
    error = {"class": "RuntimeError", "message": message} if status == "failed" else None
    sizes = {key: facts[key] for key in facts if key.startswith("n_params") or key in ("parameters", "flops_per_token")}
    tokens = facts["tokens"] * step // facts["steps"]
    record = Record(
        id=facts["id"], status=status, val_loss=loss, best_val_loss=loss, steps=step, tokens=tokens,
        flops=float(facts["flops_per_token"] * tokens), wall_seconds=1.0, cpu_seconds=1.0, seed=config.seed,
        attempts=attempt, config=config.model_dump(mode="json"), environment={}, error=error, **sizes,
    )  # fmt: skip
    write_record(home / "outcome.json", record)
    return {"completed": 0, "diverged": 0, "interrupted": 75}.get(status, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
