"""How fast runs train on this machine, measured by training for a moment: the answers that a planner asks for.

No figure of merit stands in for the measurement: on one machine the FLOP/s of tiny models differ fivefold by shape.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from nanogpt.config import Config, UserError

SECONDS = 1.0  # of optimizer steps, after the warm-up
WARM_UP_STEPS = 3
FEWEST_STEPS = 3
EVALUATED_TOKENS = 2**16  # a part of the validation split tells what the whole costs


@dataclass(frozen=True)
class Throughput:
    """What one run of a shape costs: tokens per second inside optimizer steps, and seconds of everything else."""

    tokens_per_second: float
    evaluation_seconds: float
    setup_seconds: float  # from a config to the end of the warm-up steps: corpus, model, compilation
    checkpoint_seconds: float
    peak_memory_bytes: int


def serve(requests: TextIO = sys.stdin, answers: TextIO = sys.stdout) -> None:
    """Answer measurements line by line: {"config", "seconds", "threads"} in, a Throughput or {"error"} out.

    The first line out says that torch is loaded, so that several of these can be made to measure side by side.
    """
    from nanogpt.preload import preload

    preload()
    _say(answers, {"ready": True})
    for line in requests:
        _say(answers, _answer(json.loads(line)))


def _say(answers: TextIO, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """A shape that cannot be trained here is an answer, too: the other shapes do not suffer from it."""
    try:
        config = Config.model_validate(request["config"])
        seconds, by_cpu = float(request.get("seconds", SECONDS)), bool(request.get("by_cpu"))
        return asdict(measure(config, seconds, request.get("threads"), by_cpu))
    except UserError as error:
        return {"error": str(error)}
    except (RuntimeError, ValueError, MemoryError) as error:  # torch's: out of memory is one of them
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")}


def measure(config: Config, seconds: float = SECONDS, threads: int | None = None, by_cpu: bool = False) -> Throughput:
    """Train a config for about `seconds`, evaluate and save once, and say what each of these costs.

    `by_cpu` counts CPU time per thread, which is what a processor to itself would take: for a machine that is busy
    with other work. On a GPU it changes nothing. Nothing is written but a checkpoint into a temporary folder. Raises
    UserError as training would.
    """
    import torch

    from nanogpt.describe import describe
    from nanogpt.hardware import enable_fast_float32_matmul, keep_freed_memory, peak_memory_bytes, torch_device

    begun, begun_cpu = time.perf_counter(), time.process_time()
    config = describe(config).config
    device = torch_device(config.runtime.device, config.runtime.threads or threads)
    keep_freed_memory()
    if device.type == "cpu":
        enable_fast_float32_matmul()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    by_cpu = by_cpu and device.type == "cpu"
    now = _cpu_clock if by_cpu else time.perf_counter
    work = _Work(config, device)
    for _ in range(WARM_UP_STEPS):
        work.step()
    setup = time.process_time() - begun_cpu if by_cpu else time.perf_counter() - begun
    started, steps = now(), 0
    while steps < FEWEST_STEPS or now() - started < seconds:
        work.step()
        steps += 1
    trained = now() - started
    evaluation, checkpoint = _seconds(work.evaluate, now) * work.evaluations_in_whole, _seconds(work.save)
    tokens = steps * config.train.batch_size * config.model.block_size
    return Throughput(tokens / trained, evaluation, setup, checkpoint, peak_memory_bytes(str(device)))


def _seconds(function: Callable[[], None], now: Callable[[], float] = time.perf_counter) -> float:
    started = now()
    function()
    return now() - started


def _cpu_clock() -> float:
    """CPU seconds of this process per thread that computes."""
    import torch

    return time.process_time() / torch.get_num_threads()


class _Work:
    """The parts of a training step, as nanogpt.train puts them together, without a folder and a history."""

    def __init__(self, config: Config, device: Any) -> None:
        import torch

        from nanogpt.data.opening import open_data
        from nanogpt.data.stream import Batch, make_eval_set, make_stream
        from nanogpt.model import build_model
        from nanogpt.optim import build_optimizer
        from nanogpt.replica import spread
        from nanogpt.routing import Balancer
        from nanogpt.team import ALONE
        from nanogpt.train import autocast_for

        self.config, self.device, self.done = config, device, 0
        corpus = open_data(config.data, config.runtime)
        self.stream = make_stream(
            corpus, config.train.batch_size, config.model.block_size, config.seed, config.data.sampling
        )
        whole = make_eval_set(corpus, config.model.block_size, config.train.eval_tokens)
        windows = max(1, min(len(whole.batch.x_BT), EVALUATED_TOKENS // config.model.block_size))
        self.evaluations_in_whole = len(whole.batch.x_BT) / windows
        part = Batch(whole.batch.x_BT[:windows], whole.batch.y_BT[:windows])
        self.eval_set = replace(whole, batch=part, parts=())
        torch.manual_seed(config.seed)
        self.autocast = autocast_for(config.train.precision, device)
        self.model = build_model(config, device)
        self.replica = spread(self.model, ALONE, config.runtime.data_parallel, config.runtime.compile)
        self.optimizer = build_optimizer(self.model, config, device, steps=WARM_UP_STEPS)
        self.balancer = Balancer(self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")

    def step(self) -> None:
        """One optimizer step; the loss is read, as in training, which waits for the device."""
        from nanogpt.optim import clip_gradients
        from nanogpt.train import accumulate_gradients

        self.model.at_step(self.done)
        batch = self.stream.batch(self.done)
        micro_batch = self.config.micro_batch_size
        loss = accumulate_gradients(
            self.replica,
            batch,
            micro_batch,
            scaler=self.scaler,
            autocast=self.autocast,
            device=self.device,
            balancer=self.balancer,
        )
        self.scaler.unscale_(self.optimizer)
        clip_gradients(list(self.model.parameters()), self.config.optimizer.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.balancer.finish()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        self.done += 1

    def evaluate(self) -> None:
        from nanogpt.evaluate import evaluate

        evaluate(self.model, self.eval_set, self.device, self.autocast)

    def save(self) -> None:
        from nanogpt import checkpoint
        from nanogpt.progress import Clock, Progress, pack
        from nanogpt.record import attempt_folder

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            attempt_folder(folder, 1).mkdir(parents=True)
            state = pack("throughput", Clock(Progress()), self.model, self.optimizer, self.scaler, self.replica)
            checkpoint.save(folder, 1, self.done, state)
