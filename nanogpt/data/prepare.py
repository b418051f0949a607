"""`python -m nanogpt prepare NAME`: makes a corpus's files, or removes exactly the files it made."""

from pathlib import Path

from nanogpt.config.data import ZipfMixture
from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.config.runtime import Runtime
from nanogpt.data.binfiles import read_meta
from nanogpt.data.opening import data_root, generate_zipf, zipf_folder
from nanogpt.data.shakespeare import prepare as prepare_shakespeare

NAMES = ("zipf_mixture", "shakespeare_char")


def prepare(name: str, source: Path | None = None, data_dir: str | None = None, clean: bool = False) -> str:
    """Prepare (or clean) a corpus by name and return the line that says what was done."""
    if name not in NAMES:
        raise UserError(f"prepare: no such corpus {name!r}{did_you_mean(name, NAMES)}")
    root = data_root(Runtime(data_dir=data_dir))
    if clean:
        return _clean(zipf_folder(ZipfMixture(), root) if name == "zipf_mixture" else root / name)
    if name == "shakespeare_char":
        folder = root / name
        meta = prepare_shakespeare(folder, source)
    elif source is not None:
        raise UserError("prepare: zipf_mixture is generated, not read; --from does not apply")
    else:
        folder = generate_zipf(ZipfMixture(), root)
        meta = read_meta(folder)
    sizes = f"{meta['train_tokens']:,} training and {meta['val_tokens']:,} validation tokens"
    return f"{folder}: {sizes}, vocabulary {meta['vocab_size']}"


def _clean(folder: Path) -> str:
    """Remove the files that meta.json lists, and the folder when nothing else is in it."""
    if not (folder / "meta.json").exists():
        return f"{folder}: nothing to clean"
    names = [name for name in read_meta(folder).get("files", []) if Path(name).name == name]
    removed = [name for name in names if (folder / name).is_file()]
    for name in removed:
        (folder / name).unlink()
    left = sorted(entry.name for entry in folder.iterdir())
    if not left:
        folder.rmdir()
    return f"{folder}: removed {', '.join(removed)}" + (f"; left {', '.join(left)}" if left else "")
