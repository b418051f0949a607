"""The filters of a sweep: arithmetic and boolean expressions over its factors, walked as a tree, never `eval`."""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nanogpt.config import UserError, did_you_mean

LARGEST_POWER = 64  # 9 ** 9 ** 9 must be an error, not an afternoon

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda item, group: item in group,
    ast.NotIn: lambda item, group: item not in group,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sqrt": math.sqrt,
}
_WORDS = {"true": True, "false": False, "null": None}  # YAML's spelling, beside Python's


class Filter:
    """One condition, parsed once and asked about many runs."""

    def __init__(self, text: str, place: str, kind: str = "factor") -> None:
        """`kind`: what a name stands for here, in messages."""
        if not isinstance(text, str):
            raise UserError(f"{place}: a filter is text such as 'n_embd >= 16 or tokens < 1e6', found {text!r}")
        self.text, self.place, self.kind = text, place, kind
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError):
            raise UserError(f"{place}: {text!r} is not an expression such as 'n_embd >= 16 or tokens < 1e6'") from None

    def names(self) -> list[str]:
        """Every factor or column that the expression speaks of, as it is written there."""
        inner = {id(node.value) for node in ast.walk(self._tree) if isinstance(node, ast.Attribute)}
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        named = [node for node in ast.walk(self._tree) if isinstance(node, ast.Name | ast.Attribute)]
        words = [ast.unparse(node) for node in named if id(node) not in inner | called]
        return [word for word in words if word not in _WORDS]

    def keeps(self, values: Mapping[str, Any]) -> bool:
        """Whether a run with these factors stays. A factor is named by its dotted name or by an ending of it.

        Raises UserError, naming the place, for an unknown name or a value the expression cannot work with.
        """
        return bool(self.value(values))

    def value(self, values: Mapping[str, Any]) -> Any:
        """What the expression comes to; UserError as `keeps`."""
        try:
            return self._value(self._tree, values)
        except UserError:
            raise
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise UserError(f"{self.place}: {self.text!r} cannot be worked out: {error}") from None

    def _value(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name() | ast.Attribute():
                return self._lookup(ast.unparse(node), values)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self._value(item, values) for item in items]
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](self._value(operand, values))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self._binary(op, self._value(left, values), self._value(right, values))
            case ast.BoolOp(op=op, values=terms):
                results = (self._value(term, values) for term in terms)
                return all(results) if isinstance(op, ast.And) else any(results)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compare(left, ops, others, values)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*[self._value(argument, values) for argument in arguments])
        raise UserError(
            f"{self.place}: {self.text!r}: {ast.unparse(node)!r} is not allowed; factors, numbers, text, arithmetic, "
            f"comparisons, and, or, not, in, and {', '.join(_FUNCTIONS)} are"
        )

    def _binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(op, ast.Pow) and abs(right) > LARGEST_POWER:
            raise ValueError(f"power {right} is above {LARGEST_POWER}")
        return _BINARY[type(op)](left, right)

    def _compare(self, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr], values: Mapping[str, Any]) -> bool:
        before = self._value(left, values)
        for op, other in zip(ops, others, strict=True):
            after = self._value(other, values)
            if type(op) not in _COMPARE:
                raise UserError(f"{self.place}: {self.text!r}: `is` is not allowed; write == instead")
            if not _COMPARE[type(op)](before, after):
                return False
            before = after
        return True

    def _lookup(self, name: str, values: Mapping[str, Any]) -> Any:
        found = [key for key in values if key == name or key.endswith(f".{name}")]
        if name in values:
            return values[name]
        if len(found) == 1:
            return values[found[0]]
        if name in _WORDS:
            return _WORDS[name]
        ambiguous, nearest = f"is ambiguous: {', '.join(found)}", did_you_mean(name, _names(values))
        raise UserError(f"{self.place}: {self.text!r}: {name} {ambiguous if found else f'is no {self.kind}{nearest}'}")


def _names(values: Mapping[str, Any]) -> Iterator[str]:
    return (key.rpartition(".")[2] for key in values)
