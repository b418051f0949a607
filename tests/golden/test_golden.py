"""Golden files: the id and the resolved identity of every shipped config, and a short loss curve.

`make golden` accepts what the code produces now. An id that changes makes every published run of that config drift.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.study import Study
from nanogpt.__main__ import main
from nanogpt.config import Config, canonical_json, identity, run_id
from nanogpt.config.keys import known_paths
from nanogpt.configfile import dump_yaml, load_config
from nanogpt.record import read_history

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def check(name: str, found: Any, update: bool) -> None:
    path = HERE / name
    if update:
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(path.read_text()), f"{name} changed; `make golden` accepts it"


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


def test_identities_of_shipped_configs(update: bool) -> None:
    configs = {path.stem: load_config(path) for path in sorted((ROOT / "configs").glob("*.yaml"))}
    found = {name: {"id": run_id(config), "identity": identity(config)} for name, config in configs.items()}
    check("configs.json", json.loads(canonical_json(found)), update)


def test_ids_of_shipped_studies(update: bool) -> None:
    paths = sorted((ROOT / "studies").glob("*.yaml"))
    studies = [Study.load(path, size=size) for path in paths for size in (None, *Study.load(path).sizes)]
    found = {study.name: {run.label: run_id(run.config) for run in study.runs()} for study in studies}
    check("studies.json", found, update)


def test_shipped_configs_name_their_precision() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert load_config(path).train.precision != "auto", path.name


def test_old_names_stay_unambiguous(update: bool) -> None:
    """A field added later must not take away a leaf name that people use: the golden list may only grow."""
    paths = list(known_paths().values())
    leaves = [path[-1] for path in paths]
    unique = sorted({leaf for leaf in leaves if leaves.count(leaf) == 1})
    path = HERE / "leaf_names.json"
    if update:
        path.write_text(json.dumps(unique, indent=1) + "\n")
    assert set(json.loads(path.read_text())) <= set(unique)


def test_loss_curve(tiny: Callable[..., Config], tmp_path: Path, update: bool) -> None:
    """Another CPU rounds differently, so the curve is held to five digits, not to the last bit."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tiny().model_dump(mode="json")))
    assert main(["train", str(path), f"--out_dir={tmp_path / 'run'}"]) == 0
    history = read_history(tmp_path / "run" / "history.jsonl")
    found = [[line["step"], line["train_loss"], line.get("val_loss")] for line in history]
    name = "loss_curve.json"
    if update:
        (HERE / name).write_text(json.dumps(found, indent=1) + "\n")
    for now, then in zip(found, json.loads((HERE / name).read_text()), strict=True):
        assert now == [then[0], pytest.approx(then[1], abs=1e-5), then[2] and pytest.approx(then[2], abs=1e-5)]


def test_shipped_schema_is_fresh() -> None:
    from nanogpt.config.jsonschema import config_schema

    assert json.loads((ROOT / "configs" / "config.schema.json").read_text()) == config_schema(), "run `make schemas`"


@pytest.mark.parametrize("path", sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "studies").glob("*.yaml")]),
                         ids=lambda path: path.stem)  # fmt: skip
def test_editors_find_the_schema(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).is_file()
