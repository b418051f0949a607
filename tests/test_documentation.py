"""The documentation says what is there: links, files, symbols, commands, keys and fields exist, none is left out."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from experiments.__main__ import _parser as experiments_parser
from experiments.analysis.figures import FIGURES
from experiments.analysis.laws import LAWS
from experiments.analysis.spec import ApproachesSpec, FitSpec, OptimumSpec, ReportSpec
from experiments.analysis.statements import FORMS
from experiments.study import Study
from experiments.studyfile import StudyFile
from nanogpt.__main__ import _parser as nanogpt_parser
from nanogpt.config import Config
from nanogpt.config.aliases import ALIASES
from nanogpt.config.keys import arms, known_paths
from nanogpt.configfile import load_config
from nanogpt.record import Record
from parametrization.__main__ import _parser as parametrization_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
TOP = ("nanogpt", "experiments", "parametrization", "configs", "studies", "tests", "docs", "notebooks", "benchmarks")
PARSERS = {
    "experiments": experiments_parser(),
    "nanogpt": nanogpt_parser(),
    "parametrization": parametrization_parser(),
}
# What pages never name: places of one machine, hosts that may move, notes to ourselves. The bracketed letters keep the
# pattern from matching itself.
FORBIDDEN = re.compile(
    r"/w[o]rk/|/h[o]me/|/r[o]ot/|py[p]i\.|python[h]osted|download\.py[t]orch|--(extra-)?index-[u]rl|T[O]DO|F[I]XME|X[X]X"
    r"|w[o]rkplace|\bs[e]ssions?\b|\bh[e]lpers?\b|\b(the|this) iss[u]e\b"
)


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fences(text: str, language: str) -> list[str]:
    """The bodies of fenced blocks of one language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
    return [body for name, body in blocks if name == language]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def spans(text: str) -> list[str]:
    """The `code spans` of a page, a line break inside one read as a space."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def rows(text: str) -> dict[str, list[str]]:
    """Table rows whose first cell is one code span: the span, and the other cells."""
    cells = (line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("| `"))
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in cells}


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings make, as hosts of Markdown make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_named_files_and_symbols_exist(page: Path) -> None:
    """A span that starts with one of our folders is a path; `file.py:Name` also names something defined in it."""
    wrong = []
    for span in spans(page.read_text()):
        path, _, symbol = span.partition(":")
        if path.split("/")[0] not in TOP or "/" not in path or " " in path:
            continue
        exists = any(ROOT.glob(path.rstrip("/"))) if "*" in path else (ROOT / path).exists()
        if not exists or (symbol and symbol not in defined(ROOT / path)):
            wrong.append(span)
    assert not wrong


def defined(path: Path) -> set[str]:
    """Names that a module binds at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            names |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)} if target else set()
    return names


def test_every_extension_is_described() -> None:
    """Each registry is named on the page that says how to add to it."""
    page = (ROOT / "docs" / "extending.md").read_text()
    for registry in (
        "FFNS",
        "TRUNKS",
        "SHAPES",
        "LAWS",
        "FIGURES",
        "LAUNCHERS",
        "ALIASES",
        "MODES",
        "KINDS",
        "PUBLISHED",
    ):
        assert f":{registry}`" in page


def commands() -> Iterator[tuple[str, str]]:
    """Every command of the fenced sh blocks, comments and continuation lines resolved."""
    for page in PAGES:
        for block in fences(page.read_text(), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.strip().startswith("#"):
                    yield page_name(page), line.strip()


@pytest.mark.parametrize(("page", "line"), [pytest.param(*item, id=f"{item[0]}: {item[1]}") for item in commands()])
def test_commands_parse(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.partition(" > ")[0], comments=True)
    if words[:2] == ["python", "-m"]:
        _parse_ours(words[2], words[3:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert set(words[1:]) <= set(targets)
    else:
        assert words[0] in ("pip", "pytest"), "a command nobody checks"
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()


def _parse_ours(module: str, words: list[str]) -> None:
    """The parser accepts the words, the files are there, and the settings fit the config."""
    arguments, rest = PARSERS[module].parse_known_args(words)
    if module != "nanogpt":
        assert not rest
    if module == "experiments" and arguments.study is not None and (ROOT / arguments.study).parent.name == "studies":
        assert (ROOT / arguments.study).is_file()
    if module == "nanogpt" and str(getattr(arguments, "target", "")).startswith("configs/"):
        load_config(arguments.target, rest)


def test_the_readme_shows_the_shipped_study() -> None:
    shown = fences((ROOT / "README.md").read_text(), "yaml")
    assert shown == [(ROOT / "studies" / "quickstart.yaml").read_text()]


def test_flags_named_in_the_readme_work() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    flags = shlex.split(re.findall(r"keep their meaning: `([^`]+)`", text)[0])
    config = load_config(ROOT / "configs" / "tiny_cpu.yaml", [*flags, "--base_n_embd=64"])
    assert config.model.norm == "rmsnorm"
    assert config.parametrization.mode == "mup"
    assert config.train.batch_size == 4 * 16


def test_every_form_of_claim_is_described() -> None:
    text = (ROOT / "docs" / "claims.md").read_text()
    assert {form.example for form in FORMS} <= set(rows(text))


@pytest.mark.parametrize(("page", "counts"), [("tutorial", [24]), ("studies", [22, 4])])
def test_study_files_on_the_pages_are_studies(page: str, counts: list[int], tmp_path: Path) -> None:
    blocks = fences((ROOT / "docs" / f"{page}.md").read_text(), "yaml")
    path = tmp_path / "mine.yaml"
    for block, count in zip(blocks, counts, strict=True):
        path.write_text(block)
        assert len(Study.load(path).runs()) == count


def test_python_examples_parse() -> None:
    for page in PAGES:
        for block in fences(page.read_text(), "python"):
            compile(block, page_name(page), "exec")


def leaf_default(path: tuple[str, ...]) -> list[Any]:
    """The defaults of a key in the sections that have it; `kind` keys take the one of the section's default arm."""
    sections: list[Any] = [Config]
    for name in path[:-1]:
        found = [section.model_fields[name] for section in sections if name in section.model_fields]
        sections = [arm for field in found for arm in arms(field.annotation)]
        defaults = [field.default for field in found]
    if path[-1] == "kind":
        return [default.kind for default in defaults]
    found = [section.model_fields[path[-1]].default for section in sections if path[-1] in section.model_fields]
    return [list(default) if isinstance(default, tuple) else default for default in found]


def leaves() -> dict[str, tuple[str, ...]]:
    """The keys that hold a value, not a section."""
    every = known_paths()
    return {dotted: path for dotted, path in every.items() if not any(name.startswith(f"{dotted}.") for name in every)}


@pytest.mark.parametrize("dotted", leaves())
def test_every_config_key_is_described_with_its_default(dotted: str) -> None:
    keys, _ = (ROOT / "docs" / "config.md").read_text().split("## nanoGPT's flags")
    described = rows(keys)
    assert dotted in described, f"docs/config.md lacks a row for {dotted}"
    given = described[dotted][0]
    if given == "required":
        return
    assert yaml.safe_load(given) in leaf_default(leaves()[dotted]) or given in map(str, leaf_default(leaves()[dotted]))


def test_no_config_key_is_described_that_does_not_exist() -> None:
    described = rows((ROOT / "docs" / "config.md").read_text())
    assert set(described) <= {*leaves(), *ALIASES}
    assert set(ALIASES) <= set(described)


def test_record_fields_are_all_described() -> None:
    text = (ROOT / "docs" / "records.md").read_text()
    metrics, history = text.split("## history.jsonl")
    assert set(rows(metrics)) == set(Record.model_fields)
    keys = "step tokens flops train_loss val_loss learning_rate grad_norm tokens_per_second probes routing val_routing"
    assert {*keys.split(), "val_losses", "gradient_square", "gradient_variance"} == set(rows(history))


def test_study_keys_laws_and_figures_are_all_described() -> None:
    described = rows((ROOT / "docs" / "studies.md").read_text())
    fit, report = ({f"fit.{key}" for key in FitSpec.model_fields}, {f"report.{key}" for key in ReportSpec.model_fields})
    optimum = {f"optimum.{key}" for key in OptimumSpec.model_fields}
    approaches = {f"approaches.{key}" for key in ApproachesSpec.model_fields}
    assert {*StudyFile.model_fields, *FIGURES, *fit, *optimum, *approaches, *report} <= set(described)
    for key, field in ApproachesSpec.model_fields.items():
        assert described[f"approaches.{key}"][0] == {None: "none"}.get(field.default, str(field.default))
    for key, field in OptimumSpec.model_fields.items():
        assert described[f"optimum.{key}"][0] == {None: "none"}.get(field.default, str(field.get_default())) or (
            field.is_required() and described[f"optimum.{key}"][0] == "required"
        )
    assert set(rows((ROOT / "docs" / "laws.md").read_text())) == set(LAWS)
    for key in ("law", "y", "loss", "delta", "bootstrap", "seed"):
        assert described[f"fit.{key}"][0] == str(FitSpec.model_fields[key].default)


def test_shipped_studies_are_all_described() -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    for path in (ROOT / "studies").glob("*.yaml"):
        study, row = Study.load(path), rows(text)[f"studies/{path.name}"][0]
        assert f"({len(study.runs())} runs" in row
        for size in study.sizes:
            assert f"{len(Study.load(path, size=size).runs())} with `--size {size}`" in row


def test_parametrization_modes_are_all_described() -> None:
    fields = Config.model_fields["parametrization"].default.__class__.model_fields
    named = [get_args(fields[key].annotation) for key in ("mode", "weight_decay_rule")]
    assert set(rows((ROOT / "docs" / "parametrization.md").read_text())) == {name for names in named for name in names}


def test_the_printed_tables_are_what_the_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    from parametrization.__main__ import main

    text = (ROOT / "docs" / "parametrization.md").read_text()
    shown = [command for command in fences(text, "sh") if command.startswith("python -m parametrization table")]
    assert len(shown) == 2
    for command, table in zip(shown, fences(text, ""), strict=True):
        main(shlex.split(command)[3:])
        assert capsys.readouterr().out == table


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_pages_keep_to_the_project(page: Path) -> None:
    text = page.read_text()
    assert not FORBIDDEN.findall(text)
    assert all(len(line) <= 120 for line in prose(text).splitlines() if not line.startswith("|"))


def test_figures_are_small_and_used() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for path in (ROOT / "docs" / "figures").iterdir():
        assert path.name in text
        assert path.stat().st_size < 200_000
