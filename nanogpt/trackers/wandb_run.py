"""A run in Weights & Biases: uploaded while it trains, or written beside it for `experiments sync`.

W&B cannot resume a run that was never uploaded: one offline folder replaces another. So an attempt that cannot upload
writes all lines from the first into a folder of its own, and the newest folder alone holds the whole curve.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nanogpt.config.tracker import WandB
from nanogpt.trackers.files import note_unreachable, recently_unreachable
from nanogpt.trackers.reach import spell_wandb_mode, wandb_mode, why_unreachable
from nanogpt.trackers.tracker import LOSSES, Metrics, TrackedRun, Tracker

INIT_SECONDS = 10.0  # wandb's own patience is 90 s, and it tries longer than that
EXIT_FAILED, EXIT_INTERRUPTED = 1, 75
LATER = "`python -m experiments sync` uploads it later"


class WandBRun(Tracker):
    """One W&B run per record, resumed by its id. Never `step=`: W&B drops a step that goes back."""

    def start(self, run: TrackedRun) -> int:
        assert isinstance(run.settings, WandB)
        if "wandb" not in sys.modules:
            os.environ.pop("WANDB_SERVICE", None)  # that of a notebook that started us, which may end before us
        spell_wandb_mode()
        self.upload = "later" if run.settings.upload == "later" or wandb_mode() == "offline" else "live"
        reason = self._go_online(run, run.settings) if self.upload == "live" else None
        if reason is not None:
            self.upload, self.warning = "later", f"offline, because {reason}; {LATER}"
        if self.upload == "later":
            self._run = self._init(run, run.settings, "offline")
        self.place = _place(self._run, run.attempt_folder)
        for axis in ("step", "tokens", "flops"):
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric="tokens")
        self._run.define_metric("by_flops/*", step_metric="flops")
        return self._held(run)

    def _go_online(self, run: TrackedRun, settings: WandB) -> str | None:
        """Why that is not possible; other runs beside this one may have found out already."""
        beside = run.folder.resolve().parent
        reason = recently_unreachable(beside)
        if reason is not None:
            return reason
        reason = why_unreachable()
        if reason is None:
            try:
                self._run = self._init(run, settings, "online")
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                _forget_failed()
        if reason is not None:
            note_unreachable(beside, reason)
        return reason

    def _init(self, run: TrackedRun, settings: WandB, mode: Literal["online", "offline"]) -> Any:
        import wandb

        more: dict[str, Any] = {"resume": "allow"} if mode == "online" else {}
        if wandb.run is not None:
            more["reinit"] = "create_new"  # a notebook's own run goes on
        return wandb.init(
            id=run.id,
            name=run.name,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            job_type="train",
            tags=list(settings.tags) or None,
            config={**run.config, **run.facts},
            dir=str(run.attempt_folder),
            mode=mode,
            **more,
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS, console="off", silent=True, disable_git=True, save_code=False
            ),
        )

    def _held(self, run: TrackedRun) -> int:
        """What the server has; our own files know it where the server does not say."""
        if self.upload == "later" or not self._run.resumed:
            return 0
        last = self._run.summary.get("step")
        return int(last) if isinstance(last, int | float) else run.earlier_step

    def log(self, lines: Sequence[Metrics]) -> None:
        for line in lines:
            self._run.log({**line, **{f"by_flops/{name}": line[name] for name in LOSSES if name in line}})

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        if status == "interrupted":
            self._run.mark_preempting()  # with an exit status, W&B calls it preempted: it is to go on
        self._run.finish(exit_code={"failed": EXIT_FAILED, "interrupted": EXIT_INTERRUPTED}.get(status, 0))


def _forget_failed() -> None:
    """wandb's own process keeps the id of a run that it could not begin, and refuses it from then on."""
    import wandb

    if wandb.run is None:  # else a notebook has a run of its own in that process
        wandb.teardown(EXIT_FAILED)


def _place(run: Any, folder: Path) -> str:
    """W&B's folder of the run, as seen from the attempt's: results may be moved before they are uploaded."""
    return os.path.relpath(Path(run.dir).parent.resolve(), folder.resolve())
