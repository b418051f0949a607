"""A run beside its tracker: what a checkpoint confirms is shown, and nothing a tracker does costs the run anything.

Slow part, with the real wandb and processes that are killed: about 60 s.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanogpt import checkpoint
from nanogpt.__main__ import main
from nanogpt.config import Config, UserError
from nanogpt.config.tracker import TensorBoard, WandB
from nanogpt.configfile import dump_yaml
from nanogpt.record import attempt_folder, read_history, read_record
from nanogpt.trackers import Tracker, check_installed, mirror, reach, tracker_id
from nanogpt.trackers.files import forget_unreachable, note_unreachable, read_states, recently_unreachable
from nanogpt.trackers.mirror import mirrored
from nanogpt.trackers.tracker import as_metrics

Make = Callable[..., Config]
ROOT = Path(__file__).resolve().parent.parent.parent
RUN_ID = "0123456789ab"
RELEASE = threading.Event()


class Recording(Tracker):
    """Keeps what it is shown in a file of the run, replacing nothing."""

    def start(self, run: Any) -> int:
        self.path = run.folder / "shown.jsonl"
        return max((line["step"] for line in shown(run.folder)), default=0)

    def log(self, lines: Any) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def finish(self, status: str, summary: Any) -> None:
        self.path.with_name("ended.json").write_text(json.dumps({**summary, "ended": status}))


class Warns(Recording):
    warning = "offline"


class RaisesAtStart(Recording):
    def start(self, run: Any) -> int:
        raise SystemExit("no key")


class RaisesAtLog(Recording):
    def log(self, lines: Any) -> None:
        raise OSError(28, "No space left on device")


class RaisesAtFinish(Recording):
    def finish(self, status: str, summary: Any) -> None:
        raise RuntimeError("server\nsays no")


class Hangs(Recording):
    def log(self, lines: Any) -> None:
        RELEASE.wait(30)


class SaysNothing(Recording):
    def start(self, run: Any) -> Any:
        super().start(run)


def shown(folder: Path) -> list[dict[str, Any]]:
    path = folder / "shown.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in shown(folder)]


def custom(name: str) -> dict[str, Any]:
    return {"kind": "custom", "factory": f"{__name__}:{name}"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(mirror, "STANDSTILL_SECONDS", 0.3)
    monkeypatch.setattr(mirror, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "LEFT_ALONE", threading.Event())
    RELEASE.clear()
    yield
    RELEASE.set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "study" / f"seed=1.{RUN_ID}"
    attempt_folder(path, 1).mkdir(parents=True)
    return path


def described(tiny: Make, name: str) -> Any:
    sizes = dict.fromkeys(
        ["steps", "tokens", "flops", "flops_per_token", "n_params", "n_params_non_embedding", "n_params_active"], 1
    )
    return SimpleNamespace(config=tiny(runtime={"tracker": custom(name)}), id=RUN_ID, **sizes)


def write_lines(folder: Path, until: int, saved: int | None = None, torn: str = "") -> None:
    lines = [json.dumps({"step": step, "tokens": step, "train_loss": 1.0}) + "\n" for step in range(1, until + 1)]
    (attempt_folder(folder, 1) / "history.jsonl").write_text("".join(lines) + torn)
    if saved is not None:
        (attempt_folder(folder, 1) / f"checkpoint-{saved:08d}.pt.sha256").touch()


def ended(status: str) -> Any:
    record = SimpleNamespace(status=status)
    record.model_dump = lambda mode: {"status": status, "val_loss": 2.5, "schema_version": 1, "config": {}}
    return record


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_only_confirmed_lines_are_shown(tiny: Make, folder: Path) -> None:
    with mirrored(described(tiny, "Recording"), folder, 1, 2, leads=True) as run:
        write_lines(folder, 3)
        wait_for(lambda: steps(folder) == [1, 2])  # those of the checkpoint it went on from
        write_lines(folder, 5, saved=4, torn='{"step": 6, "tok')
        wait_for(lambda: steps(folder) == [1, 2, 3, 4])
        run.ended(ended("interrupted"))
    assert steps(folder) == [1, 2, 3, 4]
    assert read_states(folder)[1] == {
        "kind": "custom", "state": "finished", "step": 4, "id": tracker_id(folder, RUN_ID), "upload": "", "place": "",
    }  # fmt: skip


@pytest.mark.parametrize("status", ["completed", "diverged"])
def test_a_result_confirms_all_lines(tiny: Make, folder: Path, status: str) -> None:
    write_lines(folder, 5)
    with mirrored(described(tiny, "Recording"), folder, 1, 0, leads=True) as run:
        run.ended(ended(status))
    assert steps(folder) == [1, 2, 3, 4, 5]
    assert json.loads((folder / "ended.json").read_text()) == {"status": status, "val_loss": 2.5, "ended": status}


def test_what_breaks_off_ends_without_a_word_to_the_tracker(tiny: Make, folder: Path) -> None:
    write_lines(folder, 5)
    with pytest.raises(KeyError), mirrored(described(tiny, "Recording"), folder, 1, 0, leads=True):
        raise KeyError
    assert not (folder / "ended.json").exists()
    assert steps(folder) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RaisesAtStart", "SystemExit: no key"),
        ("RaisesAtLog", "OSError: [Errno 28] No space left on device"),
        ("RaisesAtFinish", "RuntimeError: server says no"),
        ("SaysNothing", "TypeError: start returned None, not the step up to which it has the run's lines (0: none)"),
        ("NotThere", f"UserError: runtime.tracker.factory: {__name__}:NotThere: no NotThere in {__file__}"),
    ],
)
def test_what_a_tracker_raises_is_one_line(
    tiny: Make, folder: Path, name: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(folder, 5, saved=5)
    with mirrored(described(tiny, name), folder, 1, 0, leads=True) as run:
        run.ended(ended("completed"))
    assert capsys.readouterr().err == f"nanogpt: tracker custom: {why}; the run goes on without it\n"
    assert read_states(folder)[1]["state"] == "gave up"


def test_a_tracker_that_hangs_costs_little_once_and_less_afterwards(
    tiny: Make, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    mirror.leave(0)
    assert left == []
    write_lines(folder, 5, saved=5)
    waited = []
    for _ in range(2):
        began = time.monotonic()
        with mirrored(described(tiny, "Hangs"), folder, 1, 0, leads=True) as run:
            run.ended(ended("completed"))
        waited.append(time.monotonic() - began)
    assert waited[0] >= 0.3
    assert min(waited) == waited[1] < 20
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("hangs since" in line and line.endswith("the run ends without it") for line in said)
    mirror.leave(3)
    assert left == [3]  # else wandb's own end of the process would hang, too


def test_an_id_is_made_once_per_record(tmp_path: Path) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(tracker_id(tmp_path, RUN_ID))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(made[0]) == 12 + 1 + 8
    assert [path.name for path in tmp_path.iterdir()] == ["tracker.json"]
    (tmp_path / "tracker.json").write_text('{"id"')  # torn by a full disk
    assert tracker_id(tmp_path, RUN_ID) not in made
    assert tracker_id(tmp_path, "ba9876543210").startswith("ba9876543210-")


def test_lines_are_flat_and_finite() -> None:
    line = {"step": 1, "train_loss": None, "probes": {"h": {"0": [1.5, float("nan")]}}, "note": "x", "flag": True}
    assert as_metrics(line) == {"step": 1, "probes/h/0/0": 1.5}


def train(config: Config, folder: Path) -> None:
    """As a person does; once the folder is there, as they resume it."""
    if not (folder / "config.yaml").exists():
        folder.with_suffix(".yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    target = folder if folder.exists() else folder.with_suffix(".yaml")
    assert main(["train", str(target), *([] if target == folder else [f"--out_dir={folder}"])]) == 0


def test_a_resumed_run_continues_the_curve(tiny: Make, tmp_path: Path) -> None:
    """The history of the record and what the tracker was shown are the same points, each once."""
    folder = tmp_path / "run"
    runtime = {"tracker": custom("Recording"), "checkpoint": {"interval_seconds": 0}}
    train(tiny(train={"max_iters": 8}, runtime=runtime), folder)
    first = steps(folder)
    for path in ("metrics.json", "history.jsonl", "attempts/1/outcome.json"):
        (folder / path).unlink()
    last = checkpoint.listed(folder)[0]
    last.digest.unlink()  # as a kill in the middle of the last checkpoint
    (folder / "shown.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shown(folder)[:-1]))
    train(tiny(), folder)
    history = read_history(folder / "history.jsonl")
    assert steps(folder) == first == [line["step"] for line in history]
    assert [line["train_loss"] for line in shown(folder)] == [line["train_loss"] for line in history]
    assert list(read_states(folder)) == [1, 2]
    assert read_record(folder / "metrics.json").attempts == 2


def test_without_a_tracker_nothing_of_one_is_loaded(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "trackio", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # to import it is an error now
    monkeypatch.setattr(mirror, "Mirror", None)
    train(tiny(train={"max_iters": 2}), tmp_path / "run")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with mirrored(SimpleNamespace(config=tiny(runtime={"tracker": "wandb"})), tmp_path, 1, 0, leads=True):
        pass
    with mirrored(SimpleNamespace(config=tiny(runtime={"tracker": "trackio"})), tmp_path, 1, 0, leads=False):
        pass


def test_a_package_that_is_missing_is_named_before_anything_starts(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "c.yaml"
    path.write_text(dump_yaml(tiny(runtime={"tracker": "wandb"}).model_dump(mode="json")))
    assert main(["train", str(path), f"--out_dir={tmp_path / 'run'}"]) == 2
    assert "pip install 'nanogpt-scaling[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key and no settings of W&B anywhere."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


@pytest.mark.usefixtures("nobody")
def test_reach_asks_for_a_key_and_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no API key" in str(reach.why_unreachable())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "settings").write_text(f"[default]\nbase_url = http://127.0.0.1:{port}\n")
        assert "no API key" in str(reach.why_unreachable())
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
        assert reach.why_unreachable() is None
    assert reach.why_unreachable() == "127.0.0.1 cannot be reached (Connection refused)"
    monkeypatch.setattr(reach, "CONNECT_SECONDS", 0.05)

    def name_server_is_away(*_: Any, **__: Any) -> None:
        RELEASE.wait(30)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "create_connection", name_server_is_away)
    assert "no answer within 0.05 s" in str(reach.why_unreachable())


def test_a_warning_is_told_once_for_all_runs_of_a_process(tiny: Make, tmp_path: Path, capsys: Any) -> None:
    for name in "ab":
        attempt_folder(tmp_path / name, 1).mkdir(parents=True)
        write_lines(tmp_path / name, until=1)
        with mirrored(described(tiny, "Warns"), tmp_path / name, 1, 0, leads=True) as run:
            run.ended(ended("completed"))
        assert steps(tmp_path / name) == [1]
    assert capsys.readouterr().err == "nanogpt: tracker custom: offline\n"


@pytest.mark.parametrize(("written", "meant"), [("", "online"), (" OFFLINE", "offline"), ("dryrun", "dryrun")])
def test_a_mode_is_spelt_as_wandb_takes_it(monkeypatch: pytest.MonkeyPatch, written: str, meant: str) -> None:
    monkeypatch.setenv("WANDB_MODE", written)
    reach.check_wandb_mode()
    reach.spell_wandb_mode()
    assert os.environ["WANDB_MODE"] == meant


def test_a_mode_that_wandb_refuses_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "off")
    check_installed(TensorBoard())
    with pytest.raises(UserError, match="WANDB_MODE: no such value 'off'; allowed: online, offline, disabled"):
        check_installed(WandB())


@pytest.mark.usefixtures("nobody")
def test_a_new_key_or_server_is_asked_whatever_another_was_told(tmp_path: Path, monkeypatch: Any) -> None:
    """Whoever logs in after the first warning is not told for minutes that there is no key."""
    note_unreachable(tmp_path, "no key")
    assert recently_unreachable(tmp_path) == "no key"
    for name, value in {"WANDB_API_KEY": "1" * 40, "WANDB_BASE_URL": "http://localhost"}.items():
        monkeypatch.setenv(name, value)
        assert recently_unreachable(tmp_path) is None
        note_unreachable(tmp_path, name)
        assert recently_unreachable(tmp_path) == name
    forget_unreachable(tmp_path)
    assert recently_unreachable(tmp_path) is None


def wandb_lines(folder: Path) -> list[dict[str, float]]:
    """The history in a `.wandb` file: LevelDB's log format around protobuf records, as wandb's own reader has it."""
    from wandb.proto.wandb_internal_pb2 import Record as WandBRecord

    data = next(folder.glob("*.wandb")).read_bytes()
    offset, whole, lines = 7, b"", []
    while offset + 7 <= len(data):
        if 2**15 - offset % 2**15 < 7:
            offset += 2**15 - offset % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # full, last
            record, whole = WandBRecord.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                lines.append({key: json.loads(value) for key, value in items.items()})
    return lines


@pytest.mark.slow
def test_wandb_offline_is_whole_after_a_kill(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runtime = {"tracker": {"kind": "wandb", "upload": "later"}, "checkpoint": {"interval_seconds": 0.5}}
    config = tiny(train={"max_iters": 1000, "eval_interval": 100}, runtime=runtime)
    (tmp_path / "c.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "nanogpt", "train"]
    child = subprocess.Popen(
        [*command, str(tmp_path / "c.yaml"), f"--out_dir={folder}"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    wait_for_minutes(lambda: bool(folder.exists() and read_states(folder).get(1, {}).get("step")))
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    states, history = read_states(folder), read_history(folder / "history.jsonl")
    assert states[1]["id"] == states[2]["id"]
    assert states[2]["state"] == "finished"
    found = wandb_lines(attempt_folder(folder, 2) / states[2]["place"])
    assert [line["step"] for line in found] == [line["step"] for line in history]
    assert [line["train_loss"] for line in found] == [pytest.approx(line["train_loss"]) for line in history]
    assert {line["tokens"] for line in found} == {line["tokens"] for line in history}


def wait_for_minutes(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_that_never_answers_is_left_for_a_folder(tiny: Make, tmp_path: Path) -> None:
    """The real wandb with a key and an open port: its own patience would be minutes."""
    config = tiny(train={"max_iters": 20}, runtime={"tracker": "wandb"})
    (tmp_path / "c.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "nanogpt", "train", str(tmp_path / "c.yaml"), f"--out_dir={tmp_path / 'run'}"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        settings = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url, "WANDB_MODE": "online"}
        environment = {**os.environ, **settings}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0
    assert done.stderr.count("nanogpt: tracker wandb: offline, because") == 1
    state = read_states(tmp_path / "run")[1]
    assert (state["state"], state["step"], state["upload"]) == ("finished", 20, "later")
    assert len(wandb_lines(attempt_folder(tmp_path / "run", 1) / state["place"])) == len(
        read_history(tmp_path / "run" / "history.jsonl")
    )
