"""Synthetic tables with planted laws: what the tests of fits, figures and reports are run on."""

import numpy as np
import pandas as pd

PLANTED = {"E": 1.943, "A": 6.2, "B": 210.0, "alpha": 0.36, "beta": 0.45}
LADDER = {"E": 1.9, "A": 60.0, "B": 300.0, "alpha": 0.45, "beta": 0.42}


def planted_runs(noise: float = 0.002, seeds: int = 1, seed: int = 0) -> pd.DataFrame:
    """7 sizes x 5 token counts of a Chinchilla law, with the columns a study's table has."""
    rng = np.random.default_rng(seed)
    rows = []
    for n_embd in (8, 12, 16, 24, 32, 48, 64):
        for tokens in np.geomspace(2**17, 2**22, 5):
            for run_seed in range(1, seeds + 1):
                n = 24.0 * n_embd**2
                loss = PLANTED["E"] + PLANTED["A"] / n ** PLANTED["alpha"] + PLANTED["B"] / tokens ** PLANTED["beta"]
                loss *= np.exp(rng.normal(0.0, noise)) if noise else 1.0
                per_token = 6.0 * n + 6.0 * 256 * n_embd + 12.0 * 2 * 32 * n_embd
                rows.append({
                    "id": f"{len(rows):012x}", "label": f"n_embd={n_embd}-tokens={tokens:.0f}", "status": "completed",
                    "seed": run_seed, "model.n_embd": n_embd, "n_params": n + 512.0 * n_embd,
                    "n_params_non_embedding": n, "tokens": tokens, "flops": per_token * tokens, "val_loss": loss,
                    "val_loss_stderr": 0.003, "val_entropy": PLANTED["E"], "val_excess_loss": loss - PLANTED["E"],
                    "train_loss": loss * 0.99, "steps": int(tokens // 1024), "wall_seconds": tokens / 2e5,
                    "cpu_seconds": tokens / 1.8e5, "tokens_per_second": 2e5,
                })  # fmt: skip
    return pd.DataFrame(rows)


def planted_ladder(noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Eight widths at six computes as spent, with the columns of a study: embeddings weigh most in the small models."""
    rng = np.random.default_rng(seed)
    rows = []
    for width in (8, 12, 16, 24, 32, 48, 64, 96):
        n = 24.0 * width**2
        per_token = 6 * n + 6 * 256 * width + 12 * 2 * 32 * width
        for flops in np.geomspace(4e9, 4e12, 6):
            tokens = flops / per_token
            loss = LADDER["E"] + LADDER["A"] / n ** LADDER["alpha"] + LADDER["B"] / tokens ** LADDER["beta"]
            rows.append({
                "id": f"{len(rows):012x}", "label": f"n_embd={width}-flops={flops:.2g}",
                "status": "completed", "seed": 1, "model.n_embd": width, "n_params_non_embedding": n,
                "n_params": n + 256.0 * width, "tokens": tokens, "steps": int(tokens // 1024), "flops": flops,
                "val_loss": loss * np.exp(rng.normal(0.0, noise)),
            })  # fmt: skip
    return pd.DataFrame(rows)


def planted_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """A plausible training curve for every run, ending at its loss."""
    parts = []
    for row in runs[runs["status"] == "completed"].to_dict(orient="records"):
        share = np.geomspace(0.02, 1.0, 12)
        tokens = share * row["tokens"]
        loss = row["val_loss"] + 1.5 * (share**-0.25 - 1.0)
        parts.append(pd.DataFrame({
            "id": row["id"], "step": np.round(share * row["steps"]).astype(int), "tokens": tokens,
            "flops": share * row["flops"], "train_loss": loss * 0.99, "val_loss": loss,
            "model.n_embd": row["model.n_embd"], "n_params": row["n_params"], "seed": row["seed"],
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def with_diverged(runs: pd.DataFrame, row: int) -> pd.DataFrame:
    """The table with one run recorded as diverged: no finite loss, as the record has it."""
    changed = runs.copy()
    changed.loc[row, "status"] = "diverged"
    changed.loc[row, ["val_loss", "val_excess_loss", "train_loss"]] = np.nan
    return changed
