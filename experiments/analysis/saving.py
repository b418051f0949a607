"""Figures as files and as bytes: PNG and SVG, the same bytes for the same figure, SVG text as text."""

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanogpt.config import UserError

SUFFIXES = (".png", ".svg")


def save(drawn: Axes | Figure, path: Path | str) -> tuple[Path, Path]:
    """Write the figure that `drawn` is or belongs to as PATH.png and PATH.svg, and return both paths.

    A suffix .png or .svg of `path` is left off first; missing folders are made. UserError where that cannot be done.
    """
    if not isinstance(drawn, Axes | Figure):
        raise UserError(f"save: needs a matplotlib Axes or Figure, found {type(drawn).__name__}")
    figure = figure_of(drawn) if isinstance(drawn, Axes) else drawn
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix.lower() in SUFFIXES else stem
    files = tuple(stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.write_bytes(picture(figure, file.suffix))
    except OSError as error:
        raise UserError(f"save: {stem} cannot be written: {error.strerror or error}") from None
    return files[0], files[1]


def figure_of(axes: Axes) -> Figure:
    """The figure that axes belong to."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def svg_text(figure: Figure, salt: str) -> str:
    """The figure as SVG, the same text for the same figure and salt: no date, hashed ids salted by its name. Its words
    stay words, which a reader can search, select and edit."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue().decode("utf-8")


def picture(figure: Figure, suffix: str) -> bytes:
    """The figure as the bytes of a .png, .svg or .pdf."""
    if suffix == ".png":
        return png_bytes(figure)
    if suffix == ".svg":
        return svg_text(figure, "figure").encode()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], metadata={"CreationDate": None})
    return buffer.getvalue()


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """The <svg> element alone, fit for an HTML page with other figures: every id and reference to one carries `prefix`,
    nothing points outside, and `title` (already escaped) says what it is."""
    body = _bare(svg[svg.index("<svg") :])
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    return body.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _bare(body: str) -> str:
    """The opening tag with nothing but its viewBox: namespaces are implied in HTML and the page sets the size."""
    end = body.index(">")
    view = re.search(r'viewBox="[^"]*"', body[:end])
    assert view is not None, "matplotlib writes a viewBox"
    return f"<svg {view.group(0)}" + body[end:]
