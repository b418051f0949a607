"""The registry of trunks: one line in TRUNKS per `model.trunk.kind`. The ordinary one stands here, too."""

from nanogpt.config.model import Model
from nanogpt.model.random2d import Random2D
from nanogpt.model.recurrent import Recurrent
from nanogpt.model.shared import Shared
from nanogpt.model.trunk import Application, Plan, Schedule, Trunk

__all__ = ["TRUNKS", "Application", "Plan", "Schedule", "Stack", "Trunk"]


class Stack(Trunk):
    """The ordinary transformer: n_layer blocks of their own, once each."""

    @staticmethod
    def blocks_of(model: Model) -> int:
        return model.layers

    @staticmethod
    def depth_of(model: Model) -> float:
        return model.layers

    @classmethod
    def unique_at(cls, model: Model, depth: float) -> float:
        return depth

    def plan(self, schedule: Schedule = None) -> Plan:
        return tuple(map(Application, range(self.model.layers)))


TRUNKS: dict[str, type[Trunk]] = {"stack": Stack, "shared": Shared, "recurrent": Recurrent, "random2d": Random2D}
