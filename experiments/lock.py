"""`study.lock.json`: what a study's runs are, resolved once: ids, factors, configs, steps, tokens, FLOPs, sizes."""

import contextlib
import functools
import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments import engine
from experiments.runspec import RunSpec
from experiments.search.locking import known_trials
from experiments.search.probe import probed
from experiments.search.search import Refused, Search
from experiments.study import Study
from nanogpt.config import UserError, canonical_json
from nanogpt.record import DamagedFile, read_json, write_atomic

SCHEMA_VERSION = 3  # 2: optimum, limits, size; 3: approaches, claims, plan
LOCK_NAME = "study.lock.json"
# Runs are found by their ids, which the study's file alone decides.
MEND = "restore it from a backup, or move it aside and `run` the study's YAML file again: finished runs are kept"
Describe = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LockedRun(_Frozen):
    """One run, resolved. `asked` is the sha256 of the config before resolution: while it stays, so does the rest."""

    id: str
    label: str
    factors: dict[str, Any]
    asked: str
    config: dict[str, Any]
    steps: int
    tokens: int
    flops: float
    flops_per_token: int
    n_params: int
    n_params_non_embedding: int
    n_params_active: int
    n_params_applied: int | None = None  # locks of old do not say
    parameters: dict[str, int]
    memory_bytes: int
    checkpoint_bytes: int
    train_tokens: int | None = None  # of the corpus's training split; locks of old do not say
    trial: int | None = None  # number of the proposal, in a study that searches

    @property
    def name(self) -> str:
        return f"{self.label}.{self.id}"

    @property
    def nproc(self) -> int:
        """Processes that train it together."""
        return int(self.config.get("runtime", {}).get("nproc", 1))


class DataFile(_Frozen):
    """A file whose content entered an id. Size and time spare hashing gigabytes to see that nothing changed."""

    sha256: str
    size: int
    mtime_ns: int


class Lock(_Frozen):
    """The study as it was locked; everything a later command on any machine needs to know about it."""

    schema_version: int = SCHEMA_VERSION
    name: str
    question: str
    hypothesis: str
    source: str
    fit: dict[str, Any] | None
    optimum: dict[str, Any] | None = None
    approaches: dict[str, Any] | None = None
    compare: dict[str, Any] | None = None
    claims: list[str] = []
    report: dict[str, Any]
    limits: str = ""
    size: str | None = None
    launcher: dict[str, Any] | None = None
    supervise: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    overrides: dict[str, Any]
    study_hash: str
    files: dict[str, str]
    data_files: dict[str, DataFile]
    notes: list[str]
    former: dict[str, str] = {}  # ids of runs that drifted and were trained anew, and those of their successors
    runs: list[LockedRun]
    search: Search | None = None
    refused: list[Refused] = []

    @property
    def factors(self) -> list[str]:
        """The dotted names of everything that varies, also where a search has no trial yet."""
        searched = self.search.names.values() if self.search is not None else ()
        return list(dict.fromkeys([*(name for run in self.runs for name in run.factors), *searched]))


class Drift(_Frozen):
    """A run that was started under another id: the same factors, but a default, the base or the corpus has changed."""

    old: LockedRun
    new: LockedRun

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Dotted key -> (value then, value now)."""
        then, now = _flat(self.old.config), _flat(self.new.config)
        return {key: (then.get(key), now.get(key)) for key in sorted({*then, *now}) if then.get(key) != now.get(key)}


def read_lock(folder: Path) -> Lock | None:
    """The lock of a results folder, None when it has none. Raises UserError when it is damaged or too new."""
    path = folder / LOCK_NAME
    if not path.exists():
        return None
    try:
        with _no_collection():
            return _validated(path, read_json(path))
    except DamagedFile as error:
        raise UserError(f"{error}; {MEND}") from None


def _validated(path: Path, data: dict[str, Any]) -> Lock:
    if isinstance(version := data.get("schema_version"), int) and version > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer version (schema {version}; this one reads up to {SCHEMA_VERSION})")
    _spread(data)
    try:
        return Lock.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise DamagedFile(f"{path}: damaged: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, which would walk a lock of ten thousand runs again and again while it grows."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def write_lock(folder: Path, lock: Lock) -> None:
    """Write the lock, what the configs of all runs share written once: that is most of ten thousand runs.

    One line per run: easy to compare, and the fast path of Python's encoder.
    """
    common = _common([run.config for run in lock.runs])
    data = {**lock.model_dump(mode="json"), "common": common}
    runs = data.pop("runs")
    for run in runs:
        run["config"] = {key: value for key, value in run["config"].items() if key not in common}
    head = json.dumps(data, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    write_atomic(folder / LOCK_NAME, f'{head},\n "runs": [\n{lines}\n ]\n}}\n')


def _common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sections that are equal in all configs."""
    first = configs[0] if configs else {}
    return {key: value for key, value in first.items() if all(key in one and one[key] == value for one in configs)}


def _spread(data: dict[str, Any]) -> None:
    """Give every run's config the sections that were written once. Locks of old have none."""
    common, runs = data.pop("common", {}), data.get("runs")
    if isinstance(common, dict) and isinstance(runs, list):
        for run in runs:
            if isinstance(run, dict) and isinstance(run.get("config"), dict):
                run["config"] = {**common, **run["config"]}


def holds(lock: Lock, study: Study) -> bool:
    """Whether the lock still says what the study and the files it reads say."""
    return lock.study_hash == study.hash and _data_unchanged(lock.data_files)


def _data_unchanged(files: Mapping[str, DataFile]) -> bool:
    for name, known in files.items():
        try:
            now = os.stat(name)
        except OSError:
            return False
        if (now.st_size, now.st_mtime_ns) != (known.size, known.mtime_ns) and _digest(Path(name)) != known.sha256:
            return False
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def resolve(study: Study, old: Lock | None = None, elsewhere: bool = False) -> Lock:
    """Resolve every run of a study: what an earlier lock knows is kept, the rest is described by one child.

    Runs that train `elsewhere` may name a device that this machine lacks. Raises UserError with the place of the first
    run that cannot be resolved.
    """
    resolver = Resolver(old, functools.partial(engine.describe, elsewhere=elsewhere))
    search, refused = study.search(), []
    if search is None:
        specs = study.runs()
        runs = [_found(spec, run) for spec, run in zip(specs, resolver.runs(specs), strict=True)]
        kept, notes = _without_repeats(runs)
    elif search.sampler.kind == "optuna":
        # Its trials are proposed one by one by the workers: here it is only made sure that they can be.
        search, kept, notes = probed(search, resolver.runs, study.place("space")), [], []
        search = search.model_copy(update={"data": sorted(file.sha256 for file in resolver.data_files.values())})
    else:
        known = known_trials(search, resolver.runs, study.place("space"))
        kept, refused, notes = known.runs, known.refused, known.notes
    return Lock(
        name=study.name,
        question=study.question,
        hypothesis=study.hypothesis,
        source=study.source,
        fit=study.fit,
        optimum=study.optimum,
        approaches=study.approaches,
        compare=study.compare,
        claims=study.claims,
        report=study.report,
        limits=study.limits,
        size=study.size,
        launcher=study.launcher,
        supervise=study.supervise,
        plan=study.plan,
        overrides=study.overrides,
        study_hash=study.hash,
        files=study.files,
        data_files=resolver.data_files,
        notes=notes,
        runs=kept,
        search=search,
        refused=refused,
    )


class Resolver:
    """Describes configs, once each; what an earlier lock knows is kept while the files that entered it are the same."""

    def __init__(self, old: Lock | None = None, describe: Describe = engine.describe) -> None:
        self._describe = describe
        self.data_files: dict[str, DataFile] = {}
        self._known: dict[str, LockedRun | str] = {}
        if old is not None and _data_unchanged(old.data_files):
            self._known = {run.asked: run for run in old.runs}
            self.data_files = dict(old.data_files) if self._known else {}

    def runs(self, specs: Sequence[RunSpec]) -> list[LockedRun | str]:
        """Each spec resolved, or in one line why it cannot be. What is new is described by one child."""
        trees = [spec.config.model_dump(mode="json") for spec in specs]
        asked = [sha256(canonical_json(tree).encode()).hexdigest() for tree in trees]
        fresh = [index for index, digest in enumerate(asked) if digest not in self._known]
        described = self._describe([trees[index] for index in fresh])
        for index, facts in zip(fresh, described, strict=True):
            self.data_files |= _data_files(facts.pop("files", {}))
            self._known[asked[index]] = (
                facts["error"] if "error" in facts else locked(specs[index], asked[index], facts)
            )
        return [_as_asked(self._known[digest], spec) for spec, digest in zip(specs, asked, strict=True)]


def _as_asked(run: LockedRun | str, spec: RunSpec) -> LockedRun | str:
    """Labels, factors and trials belong to the sweep, not to what was resolved."""
    if isinstance(run, str):
        return run
    return run.model_copy(update={"label": spec.label, "factors": dict(spec.factors), "trial": spec.trial})


def _found(spec: RunSpec, run: LockedRun | str) -> LockedRun:
    if isinstance(run, str):
        raise UserError(f"{spec.place}: {spec.label}: {run}")
    return run


def locked(spec: RunSpec, asked: str, facts: Mapping[str, Any]) -> LockedRun:
    """What the engine says of a config, as a run of the lock."""
    known = {key: value for key, value in facts.items() if key in LockedRun.model_fields}
    return LockedRun.model_validate({**known, "asked": asked, "label": spec.label, "factors": dict(spec.factors)})


def _data_files(digests: Mapping[str, str]) -> dict[str, DataFile]:
    files = {}
    for name, digest in digests.items():
        path = Path(name).resolve()
        now = path.stat()
        files[str(path)] = DataFile(sha256=digest, size=now.st_size, mtime_ns=now.st_mtime_ns)
    return files


def _without_repeats(runs: Sequence[LockedRun]) -> tuple[list[LockedRun], list[str]]:
    """Two points that resolve to one run are trained once, and the study says so."""
    kept: dict[str, LockedRun] = {}
    notes = []
    for run in runs:
        if run.id not in kept:
            kept[run.id] = run
            continue
        first = kept[run.id]
        differing = [key for key, value in run.factors.items() if first.factors.get(key) != value]
        if differing and all(key.startswith("runtime.") for key in differing):
            names = ", ".join(differing)
            raise UserError(f"{run.label} and {first.label} are one run: {names} is not part of a run's identity")
        notes.append(f"{run.label} is the same run as {first.label} once resolved; it is trained once")
    return list(kept.values()), notes


def drifts(old: Lock | None, new: Lock, started: Mapping[str, Path]) -> list[Drift]:
    """The runs of the old lock that were started (have a folder) and now have the same factors but another id."""
    if old is None:
        return []
    known = {run.id for run in new.runs}
    before = {canonical_json(run.factors): run for run in old.runs if run.id in started and run.id not in known}
    pairs = ((before.get(canonical_json(run.factors)), run) for run in new.runs)
    return [Drift(old=then, new=run) for then, run in pairs if then is not None]


def keep_drifted(lock: Lock, drifted: Sequence[Drift]) -> Lock:
    """The lock with the old runs in the place of their drifted successors."""
    old = {drift.new.id: drift.old for drift in drifted}
    return lock.model_copy(update={"runs": [old.get(run.id, run) for run in lock.runs]})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_leaves(tree, prefix))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
