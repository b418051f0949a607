"""nanoGPT's config files in Python: plain assignments, parsed and never executed."""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config.errors import UserError

# Flags of nanoGPT's train.py that say nothing about the run itself; a tracker is asked for by runtime.tracker.
IGNORED = ("wandb_log", "wandb_project", "wandb_run_name", "backend")
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class PythonFile:
    """The settings of a file, and the line of each."""

    data: dict[str, Any]
    lines: dict[str, int]


def load_python(path: Path) -> PythonFile:
    """Read `name = value` lines. Raises UserError with file and line for anything else.

    A value is a literal, or arithmetic (+ - * / //) on numbers, as in `gradient_accumulation_steps = 5 * 8`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # as Python, which takes a byte order mark
        tree = ast.parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f"{path}:{line}" if line else str(path)
        reason = getattr(error, "msg", str(error)) or "nested too deeply"
        raise UserError(f"{place}: not Python: {reason}") from None
    data: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for index, statement in enumerate(tree.body):
        if index == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # the docstring
        name, value = _assignment(statement, f"{path}:{statement.lineno}")
        data.pop(name, None)  # as in Python, the last assignment counts
        if name not in IGNORED:
            data[name], lines[name] = value, statement.lineno
    return PythonFile(data, lines)


def _assignment(statement: ast.stmt, place: str) -> tuple[str, Any]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target, value = statement.target, statement.value
    else:
        raise UserError(f"{place}: only plain assignments are read, as in n_layer = 4; nothing is executed")
    if not isinstance(target, ast.Name):
        raise UserError(f"{place}: only names are assigned to, as in n_layer = 4")
    try:
        return target.id, _value(value)
    except (ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError):
        found = ast.unparse(value)
        raise UserError(f"{place}: {target.id}: expected a plain value, got {found}; nothing is executed") from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if not all(isinstance(side, int | float) for side in (left, right)):
            raise ValueError("arithmetic is on numbers")
        return _OPERATORS[type(node.op)](left, right)
    return ast.literal_eval(node)
