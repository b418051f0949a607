"""Trackers of a study: told once, grouped, uploaded several at a time, and results written where others read them.

Slow part, four runs at a time with the real wandb offline: under 90 s.
"""

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.doctor import examine, machine
from experiments.lock import LockedRun, resolve, write_lock
from experiments.runfiles import write_run_files
from experiments.store import StudyFolder
from experiments.study import Study
from experiments.tracking import tell_offline
from nanogpt.configfile import load_yaml
from nanogpt.record import Record, attempt_folder, write_record
from nanogpt.trackers.files import read_states, recently_unreachable, write_state

KEY = "0" * 40
WANDB = "runtime: {device: cpu, tracker: {kind: wandb, entity: ours}}"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key of W&B, whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


@pytest.fixture
def tracked(fake_engine: None, write_study: Any, tmp_path: Path) -> StudyFolder:
    """A locked study of three runs with wandb, none of them started."""
    path = tmp_path / "results" / "tiny"
    path.mkdir(parents=True)
    study = Study.load(write_study("{seeds: [1, 2, 3]}", f"config: {{{WANDB}}}"))
    write_lock(path, resolve(study))
    return StudyFolder(path)


def recorded(study: StudyFolder, run: LockedRun, attempt: int = 1, **state: Any) -> Path:
    """What an attempt with wandb leaves; returns its W&B folder."""
    folder = study.folder(run)
    place = attempt_folder(folder, attempt) / "wandb" / f"offline-run-{attempt}-{run.id}"
    place.mkdir(parents=True)
    (place / f"run-{run.id}.wandb").write_text("lines")
    known = {"kind": "wandb", "state": "finished", "step": 4, "upload": "later", "place": f"wandb/{place.name}"}
    write_state(folder, attempt, {**known, **state})
    (folder / "history.jsonl").write_text('{"step": 2, "train_loss": 3.0}\n{"step": 4, "train_loss": 2.5}\n')
    return place


def finished(study: StudyFolder, run: LockedRun) -> None:
    """A result of the run."""
    sizes = {"n_params": 10, "n_params_non_embedding": 8, "n_params_active": 10, "parameters": {}, "environment": {}}
    cost = {"steps": 4, "tokens": 64, "flops": 1.0, "flops_per_token": 1, "wall_seconds": 1.0, "cpu_seconds": 1.0}
    record = Record(
        id=run.id, status="completed", val_loss=2.25, seed=run.config["seed"], attempts=1, config=run.config,
        factors=run.factors, **sizes, **cost,
    )  # fmt: skip
    study.folder(run).mkdir(parents=True, exist_ok=True)
    write_record(study.folder(run) / "metrics.json", record)


@pytest.fixture
def uploader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `wandb` command that notes its words and times, fails for what is marked so, and a server that listens."""
    path = tmp_path / "bin" / "wandb"
    path.parent.mkdir()
    path.write_text(
        f"""#!{sys.executable}
import json, os, pathlib, sys, time
began = time.monotonic()
place = pathlib.Path(sys.argv[-1])
time.sleep(float(os.environ["UPLOAD_SECONDS"]))
with open({str(tmp_path / "calls.jsonl")!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], began, time.monotonic(), os.environ.get("WANDB_MODE")]) + "\\n")
if (place / "refused").exists():
    sys.exit("wandb: ERROR 403: no permission")
for file in place.glob("*.wandb"):
    file.with_name(file.name + ".synced").touch()
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.setenv("UPLOAD_SECONDS", "0")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    yield lambda: [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    server.close()


def test_sync_uploads_the_newest_folder_of_each_run(
    tracked: StudyFolder, uploader: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # of the shell that trained
    monkeypatch.setenv("UPLOAD_SECONDS", "0.5")
    one, two, three = tracked.runs()
    recorded(tracked, one, attempt=1, state="gave up", step=2)
    newest = [recorded(tracked, one, attempt=2), recorded(tracked, two, step=2, state="gave up")]
    recorded(tracked, three, upload="live")  # W&B has it
    assert main(["sync", str(tracked.path), "--jobs", "2"]) == 0
    calls = uploader()
    assert sorted(words for words, *_ in calls) == sorted(["sync", str(place)] for place in newest)
    assert max(began for _, began, *_ in calls) < min(end for *_, end, _ in calls)  # at the same time
    assert {mode for *_, mode in calls} == {None}
    said = capsys.readouterr()
    assert "2 of 2 uploaded; 1 were uploaded before, 0 have no W&B run" in said.out
    assert f"{two.name}: its curve there ends at step 2 of 4" in said.err
    assert main(["sync", str(tracked.path)]) == 0
    assert len(uploader()) == 2  # nothing is uploaded twice
    file = next(newest[0].glob("*.wandb"))
    os.utime(file, ns=(time.time_ns() + 10**9,) * 2)  # the run went on
    assert main(["sync", str(tracked.path)]) == 0
    assert uploader()[-1][0] == ["sync", "--include-synced", str(newest[0])]


def test_sync_names_what_failed_and_why_it_cannot(
    tracked: StudyFolder, uploader: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [recorded(tracked, run) for run in tracked.runs()]
    (places[1] / "refused").touch()
    assert main(["sync", str(tracked.path)]) == 1
    said = capsys.readouterr()
    assert f"{tracked.runs()[1].name}: wandb: ERROR 403: no permission" in said.err
    assert "2 of 3 uploaded" in said.out
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(["sync", str(tracked.path)]) == 2
    assert capsys.readouterr().err.startswith("sync: 1 runs wait to be uploaded, but there is no API key")


def test_a_run_is_in_its_studys_group(tracked: StudyFolder, tmp_path: Path) -> None:
    run = tracked.runs()[0]
    tracked.folder(run).mkdir(parents=True)
    write_run_files(tracked.folder(run), run, 1, None, tracked.lock.name)
    tracker = load_yaml(tracked.folder(run) / "config.yaml").data["runtime"]["tracker"]
    assert (tracker["kind"], tracker["group"], tracker["entity"]) == ("wandb", "tiny", "ours")


def test_run_says_once_that_the_network_is_away(
    fake_engine: None, write_study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study("{seeds: [1, 2]}", f"config: {{{WANDB}}}")
    out = ["--out", str(tmp_path / "results"), "--launcher", "inprocess", "--no-report"]
    assert main(["run", str(study), *out]) == 0
    said = capsys.readouterr().err
    assert said.count("recorded offline, because there is no API key") == 1


def test_a_network_that_is_back_is_used_again(tracked: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    tell_offline(tracked)
    assert recently_unreachable(tracked.path)
    monkeypatch.setattr("experiments.tracking.why_unreachable", lambda: None)
    tell_offline(tracked)
    assert recently_unreachable(tracked.path) is None
    assert not (tracked.path / ".tracker-offline").exists()


def test_a_missing_package_stops_a_study_before_anything_is_written(
    fake_engine: None, write_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    study = write_study("{seeds: [1, 2]}", f"config: {{{WANDB}}}")
    monkeypatch.setattr("nanogpt.trackers.registry._is_there", lambda module: False)
    assert main(["run", str(study), "--out", str(tmp_path / "results"), "--launcher", "inprocess"]) == 2
    assert "pip install 'nanogpt-scaling[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_doctor_looks_at_the_trackers(write_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ask_child", lambda: {"error": "not asked"})
    study = write_study("{seeds: [1, 2]}", f"config: {{{WANDB}}}")
    found = [finding for finding in examine(str(study), tmp_path, None) if finding.check == "tracker"]
    assert [(finding.verdict, "no API key" in finding.found) for finding in found] == [("warning", True)]


def test_results_go_to_files_that_others_read(tracked: StudyFolder, tmp_path: Path, capsys: Any) -> None:
    import pandas as pd

    for run in tracked.runs()[:2]:
        recorded(tracked, run)
        finished(tracked, run)
    for kind, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        assert main(["results", str(tracked.path), "--to", kind]) == 0
        table = read(tracked.path / f"results.{kind}")
        assert list(table["status"]) == ["completed", "completed", "missing"]
        assert list(table["val_loss"])[:2] == [2.25, 2.25]
        assert "3 rows" in capsys.readouterr().out
        file = tmp_path / f"lines.{kind}"
        assert main(["results", str(tracked.path), "--to", kind, "--curves", "--file", str(file)]) == 0
        assert list(read(file)["step"]) == [2, 4, 2, 4]
    for flags in (["--curves"], ["--to", "csv", "--project", "p"], ["--to", "wandb", "--file", "x"]):
        assert main(["results", str(tracked.path), *flags]) == 2
        assert "belongs to --to" in capsys.readouterr().err


def test_results_to_a_folder_name_the_folder(tracked: StudyFolder, tmp_path: Path, capsys: Any) -> None:
    assert main(["results", str(tracked.path), "--to", "csv", "--file", str(tmp_path)]) == 2
    assert f"--file: {tmp_path} is a folder" in capsys.readouterr().err


def test_results_go_to_wandb_under_the_runs_own_ids(
    tracked: StudyFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "conformance"))
    from recorders import FakeWandB

    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("nanogpt.trackers.registry._is_there", lambda module: True)
    one, two, _ = tracked.runs()
    for run in (one, two):
        recorded(tracked, run)
        finished(tracked, run)
    assert main(["results", str(tracked.path), "--to", "wandb", "--project", "p"]) == 0
    assert "2 finished runs shown to W&B; 2 wait for `python -m experiments sync" in capsys.readouterr().out
    assert [(asked["group"], asked["project"], asked["entity"]) for asked in fake.inits] == [("tiny", "p", "ours")] * 2
    assert [asked["id"][:13] for asked in fake.inits] == [f"{one.id}-", f"{two.id}-"]
    assert [[line["step"] for line in run.points] for run in fake.runs] == [[2, 4]] * 2
    assert fake.runs[0].summary["val_loss"] == 2.25
    assert read_states(tracked.folder(one))[1]["place"].startswith("wandb/offline-run-0")


@pytest.mark.slow
def test_four_runs_at_a_time_with_wandb_offline(tmp_path: Path) -> None:
    study = tmp_path / "four.yaml"
    study.write_text(
        "# Four.\nquestion: q\nhypothesis: h\nconfig:\n"
        "  model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8}\n"
        "  data: {corpus: {kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 8192}}\n"
        "  train: {batch_size: 2, max_iters: 50, precision: fp32, eval_tokens: 1024}\n"
        "  runtime: {device: cpu, threads: 1, tracker: {kind: wandb, upload: later}}\nsweep: {seeds: 4}\n"
    )
    command = [sys.executable, "-m", "experiments", "run", str(study), "--out", str(tmp_path / "results")]
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([*command, "--jobs", "4", "--no-report"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = StudyFolder(tmp_path / "results" / "four")
    folder.folders()
    states = [read_states(folder.folder(run))[1] for run in folder.runs()]
    assert [(state["state"], state["step"]) for state in states] == [("finished", 50)] * 4
    assert len({state["id"] for state in states}) == 4
    for run, state in zip(folder.runs(), states, strict=True):
        assert list((attempt_folder(folder.folder(run), 1) / state["place"]).glob("*.wandb"))
