"""Where weights are: a model of the hub, a folder as transformers saves it, or a run of ours. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanogpt import checkpoint
from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.config.weights import GPT2_NAMES, HUB
from nanogpt.data.binfiles import file_sha256
from nanogpt.record import read_json
from nanogpt.weights import hub
from nanogpt.weights.digest import combined, known_sha256

CONFIG = "config.json"
# In the order of preference; an index names the files that the weights are spread over.
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Place:
    """Weights by the name a person gave them. `config` is the file that says their architecture: transformers'
    config.json, or the config.yaml of a run (None where only the checkpoint itself holds it)."""

    name: str
    kind: Literal["hf", "run"]
    folder: Path
    config: Path | None
    checkpoint: Path | None = None  # of a run

    def described(self) -> dict[str, Any]:
        """The content of transformers' config.json."""
        assert self.config is not None
        return read_json(self.config)

    def files(self) -> tuple[Path, ...]:
        """The files whose bytes are the weights. Raises UserError where there are none."""
        if self.kind == "run":
            assert self.checkpoint is not None
            return (self.checkpoint,)
        for name in (SAFETENSORS, PICKLED):
            if (found := self._file(name)) is not None:
                return (found,)
            if (index := self._file(f"{name}.index.json")) is not None:
                return self._spread(index)
        raise UserError(f"{self.name}: no weights there: neither {SAFETENSORS} nor {PICKLED}")

    def _spread(self, index: Path) -> tuple[Path, ...]:
        names = read_json(index).get("weight_map")
        if not isinstance(names, Mapping) or not names:
            raise UserError(f"{index}: no weight_map in it")
        found = {name: self._file(str(name)) for name in sorted(set(names.values()))}
        missing = [name for name, path in found.items() if path is None or Path(name).name != name]
        if missing:
            raise UserError(f"{self.name}: {index.name} names {missing[0]}, which is not there")
        return tuple(path for path in found.values() if path is not None)

    def _file(self, name: str) -> Path | None:
        if self.name.startswith(HUB):
            return hub.get(hub.parse(self.name), name)
        return self.folder / name if (self.folder / name).is_file() else None

    def tokenizer_folder(self) -> Path | None:
        """The folder with the files of the tokenizer, fetched where they are on the hub; None without any."""
        assert self.kind == "hf"
        found = [path for name in TOKENIZER_FILES if (path := self._file(name)) is not None]
        return found[0].parent if found else None

    def sha256(self) -> str:
        """What the weights are known by; hashed once per machine as long as the files stay the same."""
        return combined(self.hashes())

    def hashes(self) -> dict[str, str]:
        """sha256 of each file, by its name."""
        if self.checkpoint is not None:  # stands beside it, and is verified before anything is loaded
            return {str(self.checkpoint): checkpoint.read_digest(self.checkpoint)}
        return {path.name: known_sha256(path) for path in self.files()}

    def hash_again(self) -> str:
        """`sha256` of the bytes as they are now, without trust in anything kept."""
        return combined({path.name: file_sha256(path) for path in self.files()})


def find(name: str) -> Place:
    """The place that a person means. Raises UserError where nothing of the kind is there."""
    if name.startswith(HUB):
        config = hub.get(hub.parse(name), CONFIG)
        if config is None:
            raise UserError(f"{name}: no {CONFIG} there: not a model that transformers saved")
        return Place(name, "hf", config.parent, config)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path)
    if path.is_file():
        return _file(name, path)
    raise UserError(f"{name}: no such run, checkpoint or folder of weights{nearest(name, path)}")


def is_hf(name: str) -> bool:
    """Whether a name means weights as transformers has them, and no run of ours."""
    path = Path(name).expanduser()
    if name.startswith(HUB) or path.name in (SAFETENSORS, PICKLED):
        return True
    return (path / CONFIG).is_file() and not (path / "config.yaml").is_file()


def _folder(name: str, folder: Path) -> Place:
    if (folder / "config.yaml").is_file():
        found = checkpoint.listed(folder)
        if not found:
            raise UserError(f"{name}: the run left no checkpoint to start from")
        return Place(name, "run", folder, folder / "config.yaml", found[0].path)
    if (folder / CONFIG).is_file():
        return Place(name, "hf", folder, folder / CONFIG)
    raise UserError(f"{name}: neither a run (config.yaml) nor weights that transformers saved ({CONFIG})")


def _file(name: str, file: Path) -> Place:
    if file.suffix == ".pt":
        return Place(name, "run", file.parent, checkpoint.config_beside(file), file)
    if (file.parent / CONFIG).is_file() and file.name in (SAFETENSORS, PICKLED):
        return Place(name, "hf", file.parent, file.parent / CONFIG)
    raise UserError(f"{name}: neither one of our checkpoints (.pt) nor {SAFETENSORS} with its {CONFIG} beside it")


def nearest(name: str, path: Path) -> str:
    """What a name that leads nowhere may have meant: an entry beside it, or a model of the hub."""
    names = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    known = ("scratch", *GPT2_NAMES) if path.name == name else ()
    hints = [hint for each in (names, known) if "did you mean" in (hint := did_you_mean(path.name, each))]
    if hints:
        return hints[0]
    return f"; a model of the hub is written {HUB}{name}" if name.count("/") <= 1 and not path.is_absolute() else ""
