"""Everything that defines one training run: validated, frozen, torch-free. Identity and runtime are kept apart."""

from nanogpt.config.errors import OneLineParser, UserError, did_you_mean
from nanogpt.config.identity import canonical_json, identity, run_id
from nanogpt.config.run import Config

__all__ = ["Config", "OneLineParser", "UserError", "canonical_json", "did_you_mean", "identity", "run_id"]
