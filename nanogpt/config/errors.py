"""The exception class for a user's mistake, its nearest-name hint, and a parser that complains in one line."""

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn


class UserError(ValueError):
    """A mistake in what a person gave us. The command line prints it as one line and exits with status 2."""


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """`; did you mean 'n_layer'?` for the closest allowed name, or the allowed names when none is close."""
    names = list(allowed)
    plain = {each.lower(): each for each in reversed(names)}  # capitals are a slip like any other
    close = difflib.get_close_matches(str(name).lower(), plain, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{plain[close[0]]}'?"
    return f"; allowed: {', '.join(names)}" if names else ""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line like every other; `--help` shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows what is allowed)\n")
