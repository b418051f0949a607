"""The exception class for a user's mistake, its nearest-name hint, and how a command line complains in one line."""

import argparse
import difflib
from collections.abc import Callable, Iterable
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
    begun = [plain[each] for each in plain if len(str(name)) > 3 and each.startswith(str(name).lower())]
    if len(begun) == 1:  # `poisson` is far from `poisson_lognormal` by its letters
        return f"; did you mean '{begun[0]}'?"
    return f"; allowed: {', '.join(names)}" if names else ""


def whole_number(least: int | None = None) -> Callable[[str], int]:
    """A flag's type: a whole number, of at least `least`."""

    def read(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = None
        if found is None or (least is not None and found < least):
            bound = "" if least is None else f" of at least {least}"
            raise argparse.ArgumentTypeError(f"expected a whole number{bound}, got {text!r}")
        return found

    return read


def number(text: str) -> float:
    """A flag's type: any number; what its range is, the setting says."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line like every other; `--help` shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows what is allowed)\n")

    def nearest_flag(self, words: Iterable[str]) -> str:
        """`; did you mean '--nproc'?` for the first of the words that is close to a flag of this parser."""
        hints = (did_you_mean(word.partition("=")[0], self._option_string_actions) for word in words if word[:1] == "-")
        return next((hint for hint in hints if "did you mean" in hint), "")
