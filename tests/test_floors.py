"""The house as drawn: which package may import which, no import circles, first lines that say what a file is for."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("parametrization", "nanogpt", "experiments")
DOORS = ("nanogpt.config", "nanogpt.configfile", "nanogpt.record", "nanogpt.describe", "nanogpt.trackers")
HEAVY = ("torch", "pandas", "scipy", "numpy", "matplotlib", "seaborn", "wandb")
MOST_LINES = 450
VAGUE = {"utils.py", "helpers.py", "common.py", "misc.py"}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, module: str) -> list[str]:
    """The modules an import statement names; `from a import b` may mean the module a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}: imports are absolute here"
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Every import of a file: the module, and whether it happens when the file is loaded."""
    tree, found = parsed(path), []
    checking = {id(n) for node in ast.walk(tree) if _is_type_checking(node) for n in ast.walk(node)}
    inside = {id(n) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
              for n in ast.walk(node)}  # fmt: skip
    for node in ast.walk(tree):
        for name in imported(node, str(path)):
            found.append((name, id(node) not in inside and id(node) not in checking))
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def is_below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def allowed(importer: str, name: str) -> bool:
    """The import table of the design: arrows only go down, and through the doors."""
    if not is_below(name, *PACKAGES):
        return True
    if is_below(importer, "parametrization"):
        return is_below(name, "parametrization")
    if is_below(importer, "nanogpt"):
        return is_below(name, "nanogpt", "parametrization")
    if is_below(importer, "experiments.analysis"):
        return is_below(name, "experiments.analysis") or name in ("nanogpt.config", *_errors)
    if is_below(importer, "experiments.launchers") and is_below(name, "nanogpt"):
        return is_below(name, "nanogpt.config")
    return is_below(name, "experiments", *DOORS) or name in ("nanogpt", "experiments") or (importer, name) in EXCEPTIONS


_errors = ("nanogpt.config.UserError", "nanogpt.config.did_you_mean")
# The child that a worker forks calls the engine; the report stage draws the loss.png that workers leave out.
EXCEPTIONS = {
    ("experiments.engine", "nanogpt.__main__"),
    ("experiments.engine", "nanogpt.__main__.main"),
    ("experiments.conclude", "nanogpt.lossplot"),
    ("experiments.conclude", "nanogpt.lossplot.draw_loss"),
}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_only_go_down(path):
    importer = module_name(path)
    wrong = [name for name, _ in imports(path) if not allowed(importer, name)]
    assert not wrong, f"{importer} may not import {wrong}"


def test_the_exceptions_are_imported_inside_functions():
    for path in SOURCES:
        for name, at_load in imports(path):
            assert not (at_load and (module_name(path), name) in EXCEPTIONS)


def test_there_is_no_import_circle():
    modules = {module_name(path) for path in SOURCES}
    arrows = {
        module_name(path): {name for name, at_load in imports(path) if at_load and name in modules}
        - {module_name(path)}
        for path in SOURCES
    }
    while leaves := [module for module, targets in arrows.items() if not targets]:
        arrows = {module: targets - set(leaves) for module, targets in arrows.items() if module not in leaves}
    assert not arrows, f"import circles among {sorted(arrows)}"


def test_light_modules_load_nothing_heavy():
    """One fresh process for all: what the first of them loads is named beside it."""
    light = ("experiments", "experiments.__main__", "experiments.runner", *DOORS, "parametrization")
    code = f"""import importlib, sys
for module in {light!r}:
    importlib.import_module(module)
    print(module, *(name for name in {HEAVY!r} if name in sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(light)


def tracked() -> list[Path]:
    """The repository's own text files; a checkout without git is walked instead."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    outside = {".venv", "build", "results", "data"}
    return [path for path in ROOT.rglob("*.*") if path.is_file() and not outside & set(path.relative_to(ROOT).parts)]


def test_every_first_line_says_what_the_file_is_for():
    silent = []
    for path in tracked():
        if path.suffix == ".py" and not (ast.get_docstring(parsed(path)) or "").strip():
            silent.append(path)
        lines = path.read_text().splitlines() if path.suffix in (".yaml", ".yml") else []
        comments = [line for line in lines[:2] if re.match(r"# \w", line) and "$schema" not in line]
        if path.suffix in (".yaml", ".yml") and not comments:
            silent.append(path)
    assert not silent, f"the first line does not say what the file is for: {silent}"


def test_files_stay_short_and_have_owners():
    sources = [path for path in tracked() if path.suffix == ".py"]
    long = {str(path): count for path in sources if (count := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long
    assert not [path for path in sources if path.name in VAGUE]


def test_functions_stay_readable():
    """The training loop is the one long function."""
    long = {}
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60 and (module_name(path), node.name) != ("nanogpt.train", "train"):
                    long[f"{module_name(path)}.{node.name}"] = lines
    assert not long
