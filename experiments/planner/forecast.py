"""What the fit of a study will know: worked out in a child with numpy, so that the driver stays light.

`python -m experiments.planner.forecast` reads one JSON request on standard input and prints one JSON answer.
"""

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from experiments import engine
from experiments.analysis.filters import Filter
from experiments.analysis.spec import FitSpec, check_fit_spec, column_among
from experiments.lock import LOCK_NAME, Lock, LockedRun
from experiments.planner.settings import NOISE, check_plan, guessed_prior
from experiments.store import StudyFolder
from nanogpt.config import UserError

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit
    from experiments.analysis.laws import Law

LEVEL = 0.95
SPARE_POINTS = 2  # beyond the parameters, before a fit's residuals say anything of the noise
AHEAD = 10.0  # the prediction that is judged: at so many times the compute of the largest run


@dataclass(frozen=True)
class Forecast:
    """The expected fit. `intervals`: per parameter (and `a`) its value and the half-width of a 95 % interval.

    `prediction` is the relative half-width of the law's loss at AHEAD times the largest run's compute, None where the
    law has no such point. `condition` is that of J'J. `unidentified` are those whose interval a fit would judge to say
    next to nothing. `problem` says why there is none of all this.
    """

    law: str = ""
    prior: str = ""
    noise: float = 0.0
    noise_source: str = ""
    points: int = 0
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    prediction: float | None = None
    condition: float = math.nan
    unidentified: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Guess:
    """What to reckon with while a study has no results: parameters of its law and the noise of ln L, with their source.

    `params` is None where nobody has said anything of this law.
    """

    params: Mapping[str, float] | None
    source: str
    noise: float
    noise_source: str


def guess_of(lock: Lock, spec: FitSpec) -> Guess:
    """The study's own `plan: {prior, noise}`, else what is known of its corpus."""
    settings = check_plan(lock.plan)
    corpus = lock.runs[0].config["data"]["corpus"]["kind"] if lock.runs else ""
    known = guessed_prior(spec.law, corpus, spec.y)
    params, source = (settings.prior, "the study's `plan.prior`") if settings.prior else known or (None, "")
    if settings.noise is not None:
        return Guess(params, source, settings.noise, "the study's `plan.noise`")
    return Guess(params, source, NOISE, "assumed")


Child = subprocess.Popen[str]


@contextlib.contextmanager
def forecaster() -> Iterator[Child]:
    """The child with numpy that forecasts one fit; it loads its libraries while the runs are still being worked out."""
    command = [sys.executable, "-m", "experiments.planner.forecast"]
    environment = {**engine.child_environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def forecast(study: StudyFolder, spec: FitSpec, runs: Sequence[LockedRun], child: Child | None = None) -> Forecast:
    """What fitting `spec` to all of `runs` will know: the law and the noise from the study's results where they can be
    fitted, else as guessed. In a child with numpy, which is started here unless one is given."""
    if child is None:
        with forecaster() as child:
            return forecast(study, spec, runs, child)
    guess, rows = guess_of(study.lock, spec), rows_of(runs, spec)
    folder = str(study.path) if (study.path / LOCK_NAME).exists() else None
    request = {"spec": spec.model_dump(mode="json"), "rows": rows, "folder": folder, **asdict(guess)}
    told, problem = child.communicate(json.dumps(request))
    if child.returncode:
        return Forecast(problem=problem.strip().rpartition("\n")[2])
    answer = json.loads(told)
    intervals = {name: (value, half) for name, (value, half) in answer.pop("intervals").items()}
    unidentified = tuple(answer.pop("unidentified"))
    return Forecast(law=spec.law, points=len(rows), intervals=intervals, unidentified=unidentified, **answer)


def rows_of(runs: Sequence[LockedRun], spec: FitSpec) -> list[dict[str, Any]]:
    """The columns of the table that are known before training, for the runs that `fit.where` keeps."""
    return [known_columns(run) for run in kept_runs(runs, spec)]


def kept_runs(runs: Sequence[LockedRun], spec: FitSpec) -> list[LockedRun]:
    """The runs that `fit.where` keeps, as far as that is known before training."""
    if spec.where is None:
        return list(runs)
    where = Filter(spec.where, "fit.where")
    try:
        return [run for run in runs if where.keeps(known_columns(run))]
    except UserError:  # it asks for a result
        return list(runs)


def known_columns(run: LockedRun) -> dict[str, Any]:
    """What the table will say of a run whatever comes out."""
    sizes = ("n_params", "n_params_non_embedding", "n_params_active", "n_params_applied", "tokens", "flops", "steps",
             "flops_per_token")  # fmt: skip
    return {
        **run.factors,
        **{key: getattr(run, key) for key in sizes},
        "seed": run.config["seed"],
        **({"train_tokens": run.train_tokens} if run.train_tokens else {}),
    }


def law_of(spec: FitSpec) -> "Law":
    """The law that a section asks for. Imports numpy."""
    from experiments.analysis.laws import make_law

    return make_law(spec.law, **spec.chosen_columns())


def fitted(spec: FitSpec, folder: str | None) -> "Fit | None":
    """The law fitted to the results there are; None where they are too few, or lie on no law."""
    if folder is None:
        return None
    from experiments.analysis.fit import fit
    from experiments.results import load

    try:
        table = load(StudyFolder(folder))
        found = fit(law_of(spec), table, y=spec.y, loss=spec.loss, delta=spec.delta, where=spec.where, bootstrap=0)
    except UserError:
        return None
    return found if found.converged and len(found.points) >= len(found.params) + SPARE_POINTS else None


def tells(params: Mapping[str, float], points: Sequence[tuple[int, int]]) -> float:
    """How little runs of these (N, D) tell of a Chinchilla law: ln of the standard errors of E and a, added up."""
    import pandas as pd

    from experiments.analysis.design import allocation_exponent, expected
    from experiments.analysis.laws import make_law

    law = make_law("chinchilla")
    table = pd.DataFrame(points, columns=list(law.columns)).astype(float)
    scatter, a = expected(law, {name: params[name] for name in law.parameters}, table, NOISE), allocation_exponent(law)
    assert a is not None
    errors = scatter.stderr_of("E") * scatter.stderr(a)
    return math.log(errors) if 0 < errors < math.inf else math.inf


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    import pandas as pd

    from experiments.analysis.design import allocation_exponent, expected, log_prediction, residual_noise

    spec, guess = check_fit_spec(request["spec"]), Guess(**{f.name: request[f.name] for f in fields(Guess)})
    law, table, found = law_of(spec), pd.DataFrame(request["rows"]), fitted(spec, request["folder"])
    if found is not None:
        noise = residual_noise(found.residuals, len(found.params))
        source = f"the fit to {len(found.points)} finished runs"
        guess, law = Guess(dict(found.params), source, noise, "its residuals"), found.law
    if not guess.params:
        raise UserError(f"{law.name} has no expected parameters yet; say them in the study, as `plan: {{prior: ...}}`")
    if not len(table):
        raise UserError("no run passes fit.where")
    for name in law.columns:
        table[name] = table[column_among(map(str, table.columns), name, "fit")].astype(float)
    for name in law.label_columns:
        table[name] = table[column_among(map(str, table.columns), name, "fit")].astype(str)
    law = law if found is not None else law.bind(table)
    if missing := sorted(set(law.parameters) - set(guess.params)):
        raise UserError(f"plan.prior: lacks {', '.join(missing)} of {law.name}")
    params = {name: float(guess.params[name]) for name in law.parameters}
    scatter = expected(law, params, table, guess.noise, spec.loss, spec.delta)
    width = scatter.width(LEVEL)
    shown = [name for name in params if name not in law.coefficients or name == law.floor]
    intervals = {name: (params[name], width * scatter.stderr_of(name)) for name in shown}
    if (a := allocation_exponent(law)) is not None:
        intervals["a"] = (a(params), width * scatter.stderr(a))
    ahead = _ahead(law.columns, request["rows"][int(table["flops"].argmax())])
    prediction = None if ahead is None else width * scatter.stderr(log_prediction(law, ahead))
    told = {"prior": guess.source, "noise": guess.noise, "noise_source": guess.noise_source}
    told |= {"intervals": intervals, "condition": scatter.condition, "prediction": prediction}
    lowest = float(law.predict(params, table).min())
    return {**told, "unidentified": [name for name, pair in intervals.items() if _says_little(law, name, pair, lowest)]}


def _says_little(law: "Law", name: str, interval: tuple[float, float], lowest: float) -> bool:
    """As a fit will judge it; `a` like an exponent."""
    from experiments.analysis.identified import SPAN, too_wide

    value, half = interval
    if not math.isfinite(half):
        return True
    if name not in law.parameters:
        return value - half <= 0 or value + half > SPAN * (value - half)
    return too_wide(law, name, value - half, value + half, lowest) is not None


def _ahead(columns: Sequence[str], largest: dict[str, Any]) -> dict[str, float] | None:
    """The largest run with AHEAD times its compute: all of it in a law of compute, shared by size and tokens else."""
    factor = AHEAD if len(columns) == 1 and columns[0] == "flops" else math.sqrt(AHEAD)
    known = [name for name in columns if name == "tokens" or name == "flops" or name.startswith("n_params")]
    return {name: largest[name] * factor for name in columns} if len(known) == len(columns) else None


def main() -> int:
    import pandas  # noqa: F401 -- loaded before the request is there, since whoever started this is busy until then

    import experiments.analysis.fit  # noqa: F401

    try:
        json.dump(_answer(json.load(sys.stdin)), sys.stdout)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
