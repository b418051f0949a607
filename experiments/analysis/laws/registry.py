"""The laws by name. A class joins by its decorator; nothing else has to be told of it."""

from dataclasses import fields
from typing import TypeVar

from experiments.analysis.laws.base import Law
from nanogpt.config import UserError, did_you_mean

LAWS: dict[str, type[Law]] = {}
_Law = TypeVar("_Law", bound=Law)


def register(law: type[_Law]) -> type[_Law]:
    """Class decorator: the law may be asked for by its name."""
    assert law.name not in LAWS, f"two laws are called {law.name}"
    LAWS[law.name] = law
    return law


def make_law(name: str, **columns: str | None) -> Law:
    """The law `name` with the columns given (None means its default); UserError on an unknown name or input."""
    if name not in LAWS:
        raise UserError(f"law: {name!r} is not a known law{did_you_mean(name, LAWS)}")
    chosen = {key: value for key, value in columns.items() if value is not None}
    for key in chosen:
        if key not in LAWS[name].inputs():
            raise UserError(f"law {name}: it has no input {key!r}; its inputs: {', '.join(LAWS[name].inputs())}")
    return LAWS[name](**chosen)


def law_inputs() -> dict[str, dict[str, str]]:
    """Every input that some law has, with the default column of each law that has it."""
    found: dict[str, dict[str, str]] = {}
    for law in LAWS.values():
        for field in fields(law):
            if field.name in law.inputs():
                found.setdefault(field.name, {})[law.name] = str(field.default)
    return found
