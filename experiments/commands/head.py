"""The head of a plan, which `plan` and `run` show: the runs by their states, and which of them start, or why none."""

from experiments.commands.failures import stop_text
from experiments.launchers.asked import anything_queued, ask_engines
from experiments.planner.summary import Plan, make_plan, plan_text
from experiments.reasons import starts_text
from experiments.store import StudyFolder


def plan_head(study: StudyFolder, at_a_time: int, retry_failed: bool = False) -> tuple[Plan, str]:
    """The sums over a study's runs, and the text about them. Engines of batch systems are asked what is queued."""
    states = study.states(queued=anything_queued(ask_engines(study.path)))
    made = make_plan(study, at_a_time, states)
    stop = "" if retry_failed else stop_text(study, states)
    starts = f"  stopped      {stop}" if stop else starts_text(study.runs(), states)
    return made, "\n".join(filter(None, [plan_text(made), starts]))
