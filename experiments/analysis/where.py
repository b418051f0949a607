"""Row filters such as `n_layer >= 4 and status == 'completed'`: parsed with `ast`, never evaluated as Python."""

import ast
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nanogpt.config import UserError

if TYPE_CHECKING:
    import pandas as pd

_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_ALLOWED: tuple[type[ast.AST], ...] = (
    ast.Expression,
    ast.BoolOp,
    ast.UnaryOp,
    ast.BinOp,
    ast.Compare,
    ast.Name,
    ast.Attribute,
    ast.Constant,
)
_ALLOWED += (ast.List, ast.Tuple, ast.Load, ast.And, ast.Or, ast.Not, ast.USub, ast.In, ast.NotIn)
_ALLOWED += (*_COMPARE, *_ARITHMETIC)


def parse_where(text: str, place: str = "where") -> ast.expr:
    """The checked syntax tree of a filter; UserError on anything but names, constants, + - * / ** and comparisons."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        example = "'tokens >= 1e6 and n_layer in [2, 4]'"
        raise UserError(f"{place}: {text!r} is not an expression such as {example}") from error
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            kind = type(node).__name__
            raise UserError(f"{place}: {text!r} holds a {kind}; allowed are column names, numbers, strings, "
                            "+ - * / **, comparisons, in, and, or, not")  # fmt: skip
    return tree.body


def select(table: "pd.DataFrame", text: str, place: str = "where") -> "pd.Series[bool]":
    """True for the rows of `table` the filter keeps."""
    import pandas as pd

    result = _value(parse_where(text, place), table, place)
    keep = pd.Series(result, index=table.index)
    if keep.dtype != bool:
        raise UserError(f"{place}: {text!r} gives {keep.dtype}, not true or false for each row")
    return keep


def _value(node: ast.AST, table: "pd.DataFrame", place: str) -> Any:
    """A column, a scalar or a mask."""
    from experiments.analysis.columns import column

    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name() | ast.Attribute():
            return table[column(table, ast.unparse(node), place)]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, table, place) for item in items]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_value(operand, table, place)
        case ast.UnaryOp(operand=operand):
            return -_value(operand, table, place)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_value(left, table, place), _value(right, table, place))
        case ast.BoolOp(op=op, values=values):
            masks = [_value(value, table, place) for value in values]
            join = operator.and_ if isinstance(op, ast.And) else operator.or_
            for mask in masks[1:]:
                masks[0] = join(masks[0], mask)
            return masks[0]
        case ast.Compare():
            return _compare(node, table, place)
    raise AssertionError(f"parse_where let {type(node).__name__} through")


def _compare(node: ast.Compare, table: "pd.DataFrame", place: str) -> Any:
    """A possibly chained comparison: a < b <= c is (a < b) and (b <= c), as in Python."""
    sides = [_value(side, table, place) for side in (node.left, *node.comparators)]
    mask: Any = True
    for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
        if isinstance(op, ast.In | ast.NotIn):
            member = left.isin(right)
            part = ~member if isinstance(op, ast.NotIn) else member
        else:
            part = _COMPARE[type(op)](left, right)
        mask = part & mask
    return mask
