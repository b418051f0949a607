"""`sync`: upload what W&B has not got yet, several runs at a time."""

import argparse
import sys

from experiments.commands.looking import folder_of
from experiments.uploads import executable, upload_all, waiting
from nanogpt.config import UserError
from nanogpt.trackers import why_unreachable

SUCCESS, FAILURE = 0, 1


def sync(arguments: argparse.Namespace) -> int:
    """Upload the newest W&B folder of each run that has changed since. Returns 1 when an upload failed."""
    study = folder_of(arguments)
    found = waiting(study)
    if not found.uploads:
        print(f"{study.lock.name}: nothing to upload: {_counts(found.there, found.without)}")
        return SUCCESS
    executable()
    reason = why_unreachable()
    if reason is not None:
        raise UserError(f"sync: {len(found.uploads)} runs wait to be uploaded, but {reason}")
    failed = 0
    for upload, problem in upload_all(found.uploads, arguments.jobs):
        print(f"{upload.label}: {problem or 'uploaded'}", file=sys.stderr if problem else sys.stdout, flush=True)
        failed += bool(problem)
        if upload.short:
            anew = f"`python -m experiments results {arguments.study} --to wandb` shows it anew, from its record"
            print(f"{upload.label}: {upload.short}; {anew}", file=sys.stderr)
    done = len(found.uploads) - failed
    print(f"{study.lock.name}: {done} of {len(found.uploads)} uploaded; {_counts(found.there, found.without)}")
    return FAILURE if failed else SUCCESS


def _counts(there: int, without: int) -> str:
    return f"{there} were uploaded before, {without} have no W&B run"
