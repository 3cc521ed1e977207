"""Pages with a part that this program writes, between two marks: lines that are comments."""

from __future__ import annotations

from pathlib import Path

from dcasgd_repro.errors import BadInput

WRITTEN_BY = {"performance": "make bench", "results": "make report"}


def marks(name: str) -> tuple[str, str]:
    """The lines before and after the part of that name."""
    return f"<!-- {name}: written by `{WRITTEN_BY[name]}` -->", f"<!-- {name}: end -->"


def halves(page: Path, name: str) -> tuple[str, str]:
    """The page's text before and after the part of that name. Raises BadInput."""
    begin, end = marks(name)
    try:
        before, opened, rest = page.read_text().partition(begin)
    except OSError as error:
        raise BadInput("readme", page, f"not readable: {error.strerror}") from None
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise BadInput("readme", page, f"it has no line {begin} ... {end}")
    return before, after


def into(page: Path, name: str, text: str) -> None:
    """Puts the text between the page's two marks."""
    before, after = halves(page, name)
    begin, end = marks(name)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
