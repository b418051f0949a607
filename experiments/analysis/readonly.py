"""A mapping that nobody can change by accident, and that still prints, pickles, copies and dumps as a dict does."""

from typing import Any, NoReturn, Self, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class ReadOnly(dict[_Key, _Value]):
    """A dict whose contents stay as they were made; `dict(mapping)` gives a copy to change.

    `types.MappingProxyType` would neither pickle nor go into JSON.
    """

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this mapping is read-only; dict(mapping) makes a copy that may be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def copy(self) -> Self:
        return self
