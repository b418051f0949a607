"""The doctor: says what is there and what is wrong, whatever is broken, and changes nothing."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from experiments.doctor import examine, folder, launchers, machine, main, report
from experiments.doctor.finding import Finding, guarded, ok, problem, warning

TORCH = {"version": "2.13.0", "threads": 2, "built_for_cuda": None, "devices": [], "memory": [], "mps": False}


@pytest.fixture
def no_torch(monkeypatch, tmp_path) -> None:
    """The child that loads torch answers at once."""
    monkeypatch.setattr(machine, "_ask_child", lambda: {**TORCH, "data": str(tmp_path / "data")})


def of(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def test_a_healthy_machine_is_well_and_nothing_changes(no_torch, tmp_path, write_study, capsys):
    out = tmp_path / "results"
    study = write_study()
    before = sorted(tmp_path.rglob("*"))
    status = main(str(study), out, None, as_json=False)
    said = capsys.readouterr().out
    assert status == 0, said
    for check in ("python", "packages", "torch", "study", "results", "link", "rename", "heartbeat", "clock", "tracker"):
        assert re.search(rf"^ok +{check} ", said, flags=re.M), said
    assert sorted(tmp_path.rglob("*")) == before
    assert main(str(study), out, None, as_json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert {"check": "study", "verdict": "ok", "found": "tiny: 2 runs", "advice": ""} in answer["findings"]


def test_torch_is_really_loaded_in_a_child(monkeypatch):
    findings = guarded("torch", machine.torch_and_data)
    assert of(findings, "torch").verdict == "ok"
    assert "loads in" in of(findings, "torch").found
    assert of(findings, "data").verdict in ("ok", "warning")
    (Path(os.environ["NANOGPT_DATA_DIR"])).mkdir(exist_ok=True)


def test_a_torch_that_breaks_is_a_problem_with_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(
        "import os, sys\nprint('libcudart: no', file=sys.stderr)\nsys.stderr.flush()\nos.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = guarded("torch", machine.torch_and_data)
    assert of(findings, "torch").verdict == "problem"
    assert "ended the process with status -6: libcudart: no" in of(findings, "torch").found


def test_missing_packages_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda name: None if name in ("scipy", "ray") else "1.0")
    findings = guarded("packages", machine.packages)
    missing = findings[1]
    assert (missing.verdict, missing.found, missing.advice) == ("problem", "missing: scipy", "pip install scipy")


def test_the_packages_are_those_of_the_project():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", each)[0] for each in listed} == set(machine.REQUIRED)


def link_missing(monkeypatch):
    def no_link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    return "link", "Operation not permitted"


def link_twice(monkeypatch):
    real = os.link

    def sloppy(source, target, **more):
        Path(target).unlink(missing_ok=True)
        real(source, target, **more)

    monkeypatch.setattr(os, "link", sloppy)
    return "link", "the same link was made twice"


def no_heartbeat(monkeypatch):
    real = os.utime
    monkeypatch.setattr(os, "utime", lambda path, times=None: real(path, times) if times else None)
    return "heartbeat", "a modification time does not move"


def full_disk(monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    return "write", "No space left on device"


@pytest.mark.parametrize("break_it", [link_missing, link_twice, no_heartbeat, full_disk])
def test_what_a_file_system_cannot_do_is_found_by_trying(tmp_path, monkeypatch, break_it):
    check, said = break_it(monkeypatch)
    findings = guarded("results", lambda: folder.results(tmp_path / "out", shared=False))
    assert of(findings, check).verdict == "problem"
    assert said in of(findings, check).found
    assert [f.check for f in findings if f.verdict == "problem"] == [check]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ahead", "words"), [(0, "agrees"), (60, "60.0 s ahead of"), (-60, "60.0 s behind")])
def test_the_clock_of_the_file_system_is_compared(tmp_path, monkeypatch, ahead, words):
    now = folder.time.time
    monkeypatch.setattr(folder.time, "time", lambda: now() - ahead)
    found = folder._clock(tmp_path)
    assert words in found.found
    assert found.verdict == ("warning" if ahead else "ok")


def test_a_disk_of_this_machine_is_doubted_for_a_cluster_only(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "file_system", lambda path: "ext4")
    alone, shared = (guarded("results", lambda s=s: folder.results(tmp_path, shared=s))[0] for s in (False, True))
    assert (alone.verdict, shared.verdict) == ("ok", "warning")
    monkeypatch.setattr(folder, "file_system", lambda path: "nfs4")
    assert guarded("results", lambda: folder.results(tmp_path, shared=True))[0].verdict == "ok"


def test_little_disk_is_a_warning_and_none_a_problem(tmp_path, monkeypatch):
    for free, verdict in ((1e12, "ok"), (2e9, "warning"), (1e8, "problem")):
        usage = shutil._ntuple_diskusage(2e12, 1e12, free)
        monkeypatch.setattr(folder.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert next(folder._disk(tmp_path)).verdict == verdict


def test_addresses_and_files_are_no_folders(tmp_path):
    (tmp_path / "file").touch()
    for out, said in (("s3://bucket/x", "is an address"), (tmp_path / "file" / "x", "is not a folder")):
        (found,) = guarded("results", lambda out=out: folder.results(Path(out), shared=False))
        assert found.verdict == "problem"
        assert said in found.found


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands, by name and shell body; nothing else is on the PATH."""

    def make(**bodies: str) -> None:
        home = tmp_path / "bin"
        home.mkdir(exist_ok=True)
        for name, body in bodies.items():
            (home / name).write_text(f"#!/bin/sh\n{body}\n")
            (home / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(home))

    return make


def test_slurm_is_asked_and_its_silence_is_a_problem(slurm_commands):
    slurm_commands(sbatch="echo slurm 22.05")
    (found,) = guarded("slurm", launchers.slurm)
    assert (found.verdict, found.found) == ("problem", "no squeue, scontrol on the PATH")
    slurm_commands(squeue="echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1", scontrol="exit 0")
    (found,) = guarded("slurm", launchers.slurm)
    assert found.verdict == "problem"
    assert "squeue does not answer: slurm_load_jobs error: Unable to contact" in found.found
    slurm_commands(squeue="echo 1; echo 2", sinfo="echo main up 2", sacct="exit 1")
    first, accounts = guarded("slurm", launchers.slurm)
    assert first.found == "slurm 22.05; 2 jobs of yours; partitions, state, nodes: main up 2"
    assert accounts.verdict == "ok"


def test_ray_is_asked_and_its_absence_is_a_problem(no_torch, tmp_path, monkeypatch):
    from experiments.launchers import raycluster

    monkeypatch.setattr(raycluster, "ray_version", lambda: None)
    assert "Ray is not installed" in of(examine(None, tmp_path, "ray"), "ray").found
    cluster = raycluster.Cluster("2.60.0", [("head", {"CPU": 2.0}), ("other", {"CPU": 2.0, "GPU": 1.0})])
    monkeypatch.setattr(raycluster, "ask_cluster", lambda address: cluster)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = [finding for finding in examine(None, tmp_path, "ray") if finding.check == "ray"]
    assert found[0] == ok("ray", "2.60.0, 2 nodes at auto: 4 CPU, 1 GPU")
    assert [finding.verdict for finding in found] == ["ok", "warning"]


def test_the_launcher_is_the_studys_and_a_slip_is_named(no_torch, tmp_path, write_study):
    findings = examine(str(write_study(more="launcher: inprocess")), tmp_path, None)
    assert of(findings, "inprocess").verdict == "ok"
    findings = examine("nowhere.yaml", tmp_path, "lcal")
    assert "no such file" in of(findings, "study").found
    assert "did you mean 'local'?" in of(findings, "launcher").found
    assert of(findings, "tracker").verdict == "ok"


def test_an_examination_that_breaks_is_a_finding():
    def broken():
        yield ok("cores", "2")
        raise RuntimeError("the dog\nate it")

    first, second = guarded("cores", broken)
    assert first.verdict == "ok"
    assert second == problem("cores", "cannot be examined: RuntimeError: the dog")


def test_the_report_counts_what_is_wrong():
    text = report([ok("a", "fine"), warning("longer", "odd", "look"), problem("b", "bad"), problem("c", "worse")])
    assert text.splitlines() == [
        "ok       a       fine",
        "warning  longer  odd",
        "                 -> look",
        "problem  b       bad",
        "problem  c       worse",
        "2 problems, 1 warning",
    ]


def test_without_the_packages_the_doctor_alone_still_starts(tmp_path):
    (tmp_path / "pydantic.py").write_text("raise ImportError('pydantic is broken')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for words, said in ((["experiments", "status", "x"], "experiments.doctor"), (["experiments.doctor"], "is broken")):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 1
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
