"""How the loss is made small: learning-rate schedules and the optimizer built from roles and multipliers."""

from nanogpt.optim.build import build_optimizer, clip_gradients, set_learning_rate
from nanogpt.optim.schedules import lr_factor, stable_steps

__all__ = ["build_optimizer", "clip_gradients", "lr_factor", "set_learning_rate", "stable_steps"]
