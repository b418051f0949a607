"""Files of the Hugging Face hub: from its cache on this machine, else downloaded into it; never a long wait."""

import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from nanogpt.config.errors import UserError
from nanogpt.config.weights import GPT2_NAMES, HUB
from nanogpt.downloads import ANSWER_SECONDS, offline


@dataclass(frozen=True)
class Repository:
    """A model on the hub: `hf:OWNER/NAME@REVISION` as a person wrote it; the revision is `main` by default."""

    written: str
    name: str
    revision: str

    @property
    def spellings(self) -> tuple[str, ...]:
        """The names under which it may lie in the cache: the hub knows gpt2 by two."""
        return (f"openai-community/{self.name}", self.name) if self.name in GPT2_NAMES else (self.name,)


def parse(written: str) -> Repository:
    """The repository that `hf:NAME` means. Raises UserError for a name that the hub cannot have."""
    name, _, revision = written.removeprefix(HUB).partition("@")
    parts = name.split("/")
    if len(parts) > 2 or not all(part and part.strip(".") and part.strip() == part for part in parts):
        raise UserError(f"{written}: expected hf:NAME or hf:OWNER/NAME, as in hf:gpt2")
    return Repository(written, name, revision or "main")


def cache_folder() -> Path:
    """Where the hub's own tools keep their downloads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def snapshot(repository: Repository) -> Path | None:
    """The folder of the cached revision, None where nothing of it is there. What is cached is never asked for again:
    a study sees the same weights from its first run to its last, until somebody updates the cache."""
    for spelling in repository.spellings:
        folder = cache_folder() / f"models--{spelling.replace('/', '--')}"
        reference = folder / "refs" / repository.revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else repository.revision
        if (folder / "snapshots" / commit).is_dir():
            return folder / "snapshots" / commit
    return None


def get(repository: Repository, file: str) -> Path | None:
    """A file of the repository, from the cache or the network; None where the repository has no such file.

    Raises UserError, at once, where neither has the repository.
    """
    cached = snapshot(repository)
    if cached is not None and (cached / file).is_file():
        return cached / file
    if cached is not None and (cached.parents[1] / ".no_exist" / cached.name / file).exists():
        return None
    if switch := forbidden():
        if cached is not None:
            return None
        raise UserError(f"{repository.written}: not in {cache_folder()}, and {switch} keeps us off the network")
    if cached is not None and not reachable():
        return None
    return _download(repository, file)


def forbidden() -> str | None:
    """The switch by which a person has said that the network is not to be asked."""
    return offline("TRANSFORMERS_OFFLINE")


@functools.cache
def reachable() -> bool:
    """One short question, since the hub's own tools repeat theirs for half a minute before they give up.

    In a thread: looking up a name knows no time limit.
    """
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(_answers()), daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return bool(answers) and answers[0]


def _answers() -> bool:
    import urllib.error  # with ssl and email behind it: too much for commands that ask no network
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _download(repository: Repository, file: str) -> Path | None:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise UserError(
            f"{repository.written}: not in {cache_folder()}; to download it: pip install 'nanogpt-scaling[hf]'"
        ) from None
    if not reachable():
        raise UserError(
            f"{repository.written}: not in {cache_folder()}, and the hub cannot be reached; give a local folder instead"
        )
    try:
        found = hf_hub_download(
            repository.name,
            file,
            revision=repository.revision,
            cache_dir=cache_folder(),
            etag_timeout=ANSWER_SECONDS,
        )
    except EntryNotFoundError:
        return None
    except GatedRepoError:
        raise UserError(
            f"{repository.written}: its owner asks for consent first: accept, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{repository.written}: no such model on the hub, or a private one: `hf auth login`") from None
    except RevisionNotFoundError:
        raise UserError(f"{repository.written}: the model has no revision {repository.revision}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{repository.written}: {_first_line(error)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{repository.written}: {file} could not be downloaded: {_first_line(error)}") from None
    return Path(found)


def _first_line(error: Exception) -> str:
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
