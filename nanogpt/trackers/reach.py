"""Whether W&B can be reached: a key and an open port, asked in seconds and without loading wandb.

wandb itself tries for 100 s before it says that there is no network.
"""

import configparser
import contextlib
import hashlib
import netrc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nanogpt.config import UserError

CONNECT_SECONDS = 3.0
HOST = "https://api.wandb.ai"
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def wandb_mode() -> str:
    """What the environment asks for: online, offline, disabled, or nothing."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)


def check_wandb_mode() -> None:
    """Raises UserError for a WANDB_MODE that wandb would refuse: then no run would have a curve."""
    mode = os.environ.get("WANDB_MODE", "").strip()
    if mode and mode.lower() not in MODES:
        raise UserError(f"WANDB_MODE: no such value {mode!r}; allowed: {', '.join(MODES)}")


def spell_wandb_mode() -> None:
    """An empty WANDB_MODE and `OFFLINE` mean what they seem to; wandb itself would refuse both."""
    if "WANDB_MODE" in os.environ and os.environ["WANDB_MODE"] not in MODES:
        os.environ["WANDB_MODE"] = wandb_mode() or "online"


def why_unreachable() -> str | None:
    """In a few words why runs cannot be uploaded to W&B from here now; None when they can, as far as one sees."""
    url = _settings().get("base_url") or HOST
    host = urlsplit(url).hostname or ""
    if not _has_key(host):
        return "there is no API key (`wandb login`, or WANDB_API_KEY)"
    proxy = next((os.environ[name] for name in ("HTTPS_PROXY", "https_proxy") if os.environ.get(name)), None)
    target = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}" if proxy else url)
    port = target.port or (80 if target.scheme == "http" else 443)
    problem = _connect(target.hostname or "", port, CONNECT_SECONDS)
    return None if problem is None else f"{target.hostname} cannot be reached ({problem})"


def asked_as() -> str:
    """8 hex digits for whom and what `why_unreachable` asks: another key or server may well get another answer."""
    settings = _settings()
    url = settings.get("base_url") or HOST
    has_key = _has_key(urlsplit(url).hostname or "")
    asked = (url, has_key, os.environ.get("WANDB_API_KEY"), settings.get("api_key"))
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:8]


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return bool(_settings().get("api_key")) or any(_keys_of(path, host) for path in _netrc_files())


def _netrc_files() -> Iterator[Path]:
    if os.environ.get("NETRC"):
        yield Path(os.environ["NETRC"]).expanduser()
    else:
        with contextlib.suppress(RuntimeError):  # no home
            yield from (Path.home() / name for name in (".netrc", "_netrc"))


def _keys_of(path: Path, host: str) -> bool:
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    return bool(found and found[2])


def _settings() -> dict[str, str]:
    """W&B's own settings: its file in the home folder, and above it the environment."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        parser.read(Path(folder) / "settings")
    found = dict(parser["default"]) if parser.has_section("default") else {}
    if os.environ.get("WANDB_BASE_URL"):
        found["base_url"] = os.environ["WANDB_BASE_URL"]
    return found


def _connect(host: str, port: int, seconds: float) -> str | None:
    """Why no connection comes about; None when one does. Looking a name up cannot be interrupted, only left alone."""
    answers: list[str | None] = []

    def attempt() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            answers.append(None)
        except (OSError, UnicodeError) as error:
            answers.append(str(getattr(error, "strerror", None) or error) or type(error).__name__)

    thread = threading.Thread(target=attempt, daemon=True, name="wandb-reach")
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer within {seconds:g} s"
