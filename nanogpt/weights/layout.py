"""What a layout of transformers' is to us: which models it can hold, and how tensors are called there. No torch."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nanogpt.config.errors import UserError
from nanogpt.config.model import Model

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]


@dataclass(frozen=True)
class Flat:
    """A model as a plain stack of blocks without multipliers, by the names of our tensors, and what that took."""

    model: Model
    tensors: Tensors
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fields:
    """transformers' config.json, read with complaints that name the file."""

    place: str
    content: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or what transformers takes for it where it is absent or null."""
        found = self.content.get(name)
        return default if found is None else found

    def count(self, name: str, default: int | None = None) -> int:
        found = self.get(name, default)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise UserError(f"{self.place}: {name}: expected a whole number, got {found!r}")
        return found

    def choice(self, name: str, allowed: Mapping[str, str], default: str) -> str:
        found = self.get(name, default)
        if found not in allowed:
            raise UserError(f"{self.place}: {name}={found}: we have only {', '.join(allowed)}")
        return allowed[found]

    def expect(self, values: Mapping[str, Any]) -> None:
        """Raises UserError for a field whose value would make another function of the same tensors."""
        for name, value in values.items():
            found = self.get(name, value)
            if found != value:
                raise UserError(f"{self.place}: {name}={found}: our model has {name}={value}, and no other")


class Layout(ABC):
    """One architecture of transformers', in both directions."""

    name: ClassVar[str]  # transformers' model_type
    title: ClassVar[str]
    architecture: ClassVar[str]
    prefix: ClassVar[str]  # of all names but the head's; checkpoints of the bare model lack it
    outside: ClassVar[Mapping[str, str]]  # their names of the tensors outside the blocks, and ours
    ignored: ClassVar[tuple[str, ...]]  # patterns of their tensors that hold nothing that was learned

    @abstractmethod
    def section(self, fields: Fields) -> dict[str, Any]:
        """Our `model` section for their config.json. Raises UserError for what we do not have."""

    @abstractmethod
    def obstacles(self, model: Model) -> list[str]:
        """What of a model has no place in this layout, beyond what none of them has."""

    @abstractmethod
    def config(self, model: Model) -> dict[str, Any]:
        """The architecture's own part of config.json for a plain stack."""

    @abstractmethod
    def block_to_theirs(self, flat: Tensors, model: Model, number: int) -> Tensors:
        """The tensors of one block by their names."""

    @abstractmethod
    def block_to_ours(self, theirs: Tensors, model: Model, number: int) -> Tensors:
        """The tensors of one block by our names. Raises KeyError with the name of a missing one."""

    def notes(self, model: Model) -> list[str]:
        """What the layout adds to a model that it holds."""
        return []

    def finish(self, flat: Flat, theirs: Tensors) -> Tensors:
        return theirs

    def to_theirs(self, flat: Flat) -> Tensors:
        """All tensors by their names; a tied head is left out, as transformers does."""
        found = {theirs: flat.tensors[ours] for theirs, ours in self.outside.items() if ours in flat.tensors}
        for number in range(flat.model.layers):
            found |= self.block_to_theirs(flat.tensors, flat.model, number)
        return self.finish(flat, found)

    def to_ours(self, theirs: Tensors, model: Model, place: str) -> Tensors:
        """All tensors by our names. Raises UserError naming a tensor that is missing, or that has no place here."""
        theirs = self._full_names(theirs)
        if model.tie_embeddings:
            theirs.pop("lm_head.weight", None)
        try:
            found = {ours: theirs[name] for name, ours in self.outside.items() if self._has(ours, model)}
            for number in range(model.layers):
                found |= self.block_to_ours(theirs, model, number)
        except KeyError as error:
            raise UserError(
                f"{place}: no tensor {error.args[0]} there; it is not the model of its config.json"
            ) from None
        self._refuse_more(theirs, found, model, place)
        return found

    def _full_names(self, theirs: Tensors) -> Tensors:
        """With the prefix, which checkpoints of the bare model lack, and without what was never learned."""
        bare = not any(name.startswith(self.prefix) for name in theirs)
        full = {self.prefix + name if bare and name != "lm_head.weight" else name: t for name, t in theirs.items()}
        return {name: t for name, t in full.items() if not _matches(name, self.ignored)}

    def _has(self, ours: str, model: Model) -> bool:
        return not (ours == "head.weight" and model.tie_embeddings)

    def _refuse_more(self, theirs: Tensors, found: Tensors, model: Model, place: str) -> None:
        """A tensor that is left over would be a part of the model that ours lacks."""
        back = Flat(model, found)
        left = sorted(set(theirs) - set(self.to_theirs(back)))
        if left:
            raise UserError(f"{place}: tensor {left[0]} has no place in our {self.title}"
                            + (f" (nor have {len(left) - 1} more)" if len(left) > 1 else ""))  # fmt: skip


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
