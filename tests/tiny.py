"""The config that tests train in a second, or change a little first."""

from typing import Any

TINY: dict[str, Any] = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": False},
    "data": {"corpus": {"kind": "zipf_mixture", "alphabet_size": 32, "train_tokens": 65536, "val_tokens": 8192}},
    "optimizer": {"learning_rate": 1e-2},
    "schedule": {"kind": "cosine", "warmup_iters": 2},
    "train": {"batch_size": 4, "max_iters": 12, "precision": "fp32", "eval_interval": 4, "eval_tokens": 1024},
    "runtime": {"device": "cpu", "threads": 1, "log_interval": 2},
}
