"""ALBERT's trunk (arXiv 1909.11942): n_layer applications of blocks that share their weights, or a part of them."""

from nanogpt.config import trunks as config
from nanogpt.config.model import Model
from nanogpt.model.block import Block
from nanogpt.model.trunk import Application, Plan, Schedule, Trunk
from parametrization import Rules


def group_of(layer: int, layers: int, arm: config.Shared) -> int:
    """The group of weights that a layer takes: int(layer / (layers / groups)) in ALBERT's order, or in turn."""
    return layer % arm.groups if arm.order == "cycle" else layer * arm.groups // layers


class Shared(Trunk):
    """`scope: all` applies `groups` whole blocks.

    Under `attn` and `ffn` there are n_layer blocks, each with norms of its own, that have the attention or the
    feed-forward layer in common.
    """

    def __init__(self, model: Model, rules: Rules, seed: int = 0) -> None:
        super().__init__(model, rules, seed)
        arm = _arm(model)
        if arm.scope == "all":
            return
        owners = {group_of(layer, model.layers, arm): layer for layer in reversed(range(model.layers))}
        for layer, block in enumerate(self.unique()):
            owner = self.unique()[owners[group_of(layer, model.layers, arm)]]
            if arm.scope == "attn":
                block.attention = owner.attention
            else:
                block.ffn = owner.ffn

    def new_block(self, model: Model, rules: Rules, number: int) -> Block:
        """Shared feed-forward layers are counted by group: `ffn.moe_every` counts those that own weights."""
        arm = _arm(model)
        return Block(model, rules, group_of(number, model.layers, arm) if arm.scope == "ffn" else number)

    @staticmethod
    def blocks_of(model: Model) -> int:
        return _arm(model).groups if _arm(model).scope == "all" else model.layers

    @staticmethod
    def depth_of(model: Model) -> float:
        return model.layers

    @classmethod
    def unique_at(cls, model: Model, depth: float) -> float:
        """Where one half of a block is shared and the other is not, the mean of the two."""
        groups = min(_arm(model).groups, depth)
        return groups if _arm(model).scope == "all" else (groups + depth) / 2

    def plan(self, schedule: Schedule = None) -> Plan:
        arm, layers = _arm(self.model), self.model.layers
        if arm.scope != "all":
            return tuple(map(Application, range(layers)))
        return tuple(Application(group_of(layer, layers, arm)) for layer in range(layers))


def _arm(model: Model) -> config.Shared:
    assert isinstance(model.trunk, config.Shared)
    return model.trunk
