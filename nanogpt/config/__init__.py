"""Everything that defines one training run: validated, frozen, torch-free. Identity and runtime are kept apart."""

from nanogpt.config.diskfull import (
    free_bytes,
    free_space,
    is_disk_full,
    naming,
    nearest_existing,
    os_problem,
    os_reason,
)
from nanogpt.config.errors import OneLineParser, UserError, did_you_mean
from nanogpt.config.identity import canonical_json, identity, run_id, why_cut_matters
from nanogpt.config.run import Config

__all__ = [
    "Config",
    "OneLineParser",
    "UserError",
    "canonical_json",
    "did_you_mean",
    "free_bytes",
    "free_space",
    "identity",
    "is_disk_full",
    "naming",
    "nearest_existing",
    "os_problem",
    "os_reason",
    "run_id",
    "why_cut_matters",
]
