"""The functional forms a table can be fitted with: immutable, with symbols, units and the paper they come from.

A law is one class with `@register` above it, in any file of this folder. Importing the folder loads nothing heavy.
"""

from importlib import import_module
from pkgutil import iter_modules

from experiments.analysis.laws.base import Array, Columns, Design, Law, Parameter
from experiments.analysis.laws.power import Chinchilla, Gadre, PowerLaw, SaturatingPowerLaw
from experiments.analysis.laws.registry import LAWS, law_inputs, make_law, register
from experiments.analysis.laws.terms import PowerTerms, Term

__all__ = [
    "LAWS", "Array", "Chinchilla", "Columns", "Design", "Gadre", "Law", "Parameter", "PowerLaw", "PowerTerms",
    "SaturatingPowerLaw", "Term", "law_inputs", "make_law", "register",
]  # fmt: skip

for module in iter_modules(__path__, f"{__name__}."):
    import_module(module.name)
