"""What all tests share: one thread, a private data folder, the golden-file switch, and small configs."""

import os

# Before anything loads torch: tests run beside each other, and one thread each is fastest and bit-reproducible.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "Agg"

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import Config
from tests.tiny import TINY

ROOT = Path(__file__).resolve().parent.parent
# Corpora that tests generate are made once per machine and user, not once per test.
DATA_DIR = Path(tempfile.gettempdir()) / f"nanogpt-scaling-test-data-{os.getuid()}"
os.environ["NANOGPT_DATA_DIR"] = str(DATA_DIR)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="accept what the code produces as the golden files")


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """A config that trains in a second; keyword arguments are sections to merge, as in tiny(train={"max_iters": 3})."""

    def make(**sections: Any) -> Config:
        tree = copy.deepcopy(TINY)
        for name, value in sections.items():
            if isinstance(value, dict) and isinstance(tree.get(name), dict):
                tree[name] = {**tree[name], **value}
            else:
                tree[name] = value
        return Config.model_validate(tree)

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of sample data beside the checkout; a test that asks for it skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of sample data beside the checkout")
    return folder
