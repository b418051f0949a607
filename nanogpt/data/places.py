"""Where corpora lie: the data directory, and the folder that a name means."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from nanogpt.config.data import KINDS, BinFolder, Mixture, ShakespeareChar, SingleCorpus, ZipfMixture
from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.config.identity import canonical_json
from nanogpt.config.runtime import Runtime
from nanogpt.data.folders import GPT2, CorpusFiles, MissingCorpus, find_files, holds_corpus


def data_root(runtime: Runtime) -> Path:
    """The folder of prepared corpora: `runtime.data_dir`, else $NANOGPT_DATA_DIR, else data/ of the checkout."""
    given = runtime.data_dir or os.environ.get("NANOGPT_DATA_DIR")
    if given:
        return Path(given).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "data" if (checkout / "pyproject.toml").exists() else Path.cwd() / "data"


def zipf_folder(corpus: ZipfMixture, root: Path) -> Path:
    """Where the generated text lies; the name changes with everything that changes the text."""
    key = canonical_json(corpus.model_dump(mode="json"))
    return root / f"zipf_mixture-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def corpus_folder(corpus: SingleCorpus | Mixture, runtime: Runtime, tokenizer: str | None = None) -> Path:
    """Where the files of a corpus lie; of a mixture, those of its first part.

    A folder may be given by its path, or by its name below the data directory; NAME also means the NAME.TOKENIZER that
    `prepare` makes, with GPT-2's tokens unless `tokenizer` (`data.tokenizer`) names others.
    """
    if isinstance(corpus, Mixture):
        return corpus_folder(corpus.parts[0].corpus, runtime, tokenizer)
    if isinstance(corpus, ZipfMixture):
        return zipf_folder(corpus, data_root(runtime))
    if isinstance(corpus, ShakespeareChar):
        return data_root(runtime) / "shakespeare_char"
    places = list(_places(corpus.path, runtime, tokenizer))
    below = data_root(runtime) / Path(corpus.path).expanduser()
    return next((place for place in places if holds_corpus(place)), next(filter(Path.is_dir, places), below))


def _places(path: str, runtime: Runtime, tokenizer: str | None) -> Iterator[Path]:
    """In the order of preference; a tokenizer that was asked for comes before a folder that may have another."""
    given = Path(path).expanduser()
    exact = list(dict.fromkeys([given, data_root(runtime) / given]))
    name = (tokenizer or GPT2).removesuffix("_base")
    endings = [f".{name}", f".{name}_base"]
    prepared = [place.with_name(place.name + ending) for place in exact if place.name for ending in endings]
    yield from (*prepared, *exact) if tokenizer else (*exact, *prepared)


def find_corpus(corpus: ShakespeareChar | BinFolder, tokenizer: str | None, runtime: Runtime) -> CorpusFiles:
    """The files of a corpus. Raises UserError where there are none, or of another tokenizer than the one asked for."""
    folder = corpus_folder(corpus, runtime, tokenizer)
    if isinstance(corpus, BinFolder) and not folder.is_dir():
        raise MissingCorpus(f"{folder}: no corpus there{_nearest(corpus.path, runtime, tokenizer)}")
    files = find_files(folder)
    if tokenizer is not None and files.tokenizer is not None:
        asked, there = (name.removesuffix("_base") for name in (tokenizer, files.tokenizer))
        if asked != there:
            raise UserError(f"data.tokenizer: {tokenizer}: {folder} holds tokens of {files.tokenizer}")
    return files


def _nearest(path: str, runtime: Runtime, tokenizer: str | None) -> str:
    """A misspelt name, or a corpus that is there with another tokenizer's tokens."""
    root = data_root(runtime)
    there = sorted(entry.name for entry in root.iterdir() if holds_corpus(entry)) if root.is_dir() else []
    others = [name.removeprefix(f"{path}.") for name in there if name.startswith(f"{path}.")]
    if others:
        return f"; it is prepared with {', '.join(others)}: set data.tokenizer to {' or '.join(others)}"
    hint = did_you_mean(path, [*KINDS, *there, *(name.rpartition(".")[0] for name in there if "." in name)])
    hint = hint if "did you mean" in hint else ""
    if "/" in path:
        return hint
    made = f"`python -m nanogpt prepare {path}` makes one where that is a corpus's name"
    return f"{hint or f', nor a {path}.{tokenizer or GPT2}'}; {made}"
