"""Amounts as people read them: three digits with a prefix, times, money."""

_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float, unit: str) -> str:
    """`1.2 TFLOP`, `65.5 ktokens`: three digits with an SI prefix."""
    for factor, prefix in _SI:
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def short(value: float) -> str:
    """`1.2T`: as `amount`, for the column of a table whose head has the unit."""
    return amount(value, "").replace(" ", "")


def runs_words(count: int) -> str:
    """`1 run`, `16 runs`."""
    return f"{count} run{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def energy(watt_hours: float) -> str:
    """`250 Wh`, `1.4 kWh`."""
    return f"{watt_hours / 1000:.3g} kWh" if watt_hours >= 1000 else f"{watt_hours:.3g} Wh"


def table_lines(head: list[str], rows: list[list[str]], indent: str = "  ") -> list[str]:
    """A table with aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        (indent + "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                            for i, (cell, width) in enumerate(zip(row, widths, strict=True)))).rstrip()
        for row in [head, *rows]
    ]  # fmt: skip
