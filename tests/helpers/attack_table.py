"""The table that the attacks end with: what was tried, how often something went wrong, and how often it may."""

from dataclasses import dataclass

import pytest

HEADINGS = ("attack", "tried", "wrong", "limit")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    tried: int
    wrong: int
    limit: float

    @property
    def exceeded(self):
        return self.wrong > self.limit * self.tried

    def cells(self):
        return self.name, f"{self.tried:,}", f"{self.wrong:,}", f"{self.limit:.1%}" if self.limit else "0"


@pytest.fixture
def table(request):
    """Adds a row, and fails where more went wrong than may: ``table(name, tried, wrong, limit=0, examples=())``.

    The limit is a fraction of what was tried; the examples are said where it is exceeded.
    """

    def add(name, tried, wrong, limit=0.0, examples=()):
        row = Row(name, tried, wrong, limit)
        # As a property of the test, which reaches the summary from other processes too.
        request.node.user_properties.append(("attack", row.cells()))
        assert not row.exceeded, f"{name}: {wrong} of {tried} went wrong. " + "\n".join(map(str, examples[:20]))

    return add


def pytest_terminal_summary(terminalreporter):
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = sorted(tuple(cells) for report in reports for key, cells in report.user_properties if key == "attack")
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    terminalreporter.section("attacks")
    for name, *figures in (HEADINGS, *rows):
        cells = [name.ljust(widths[0]), *(f.rjust(w) for f, w in zip(figures, widths[1:], strict=True))]
        terminalreporter.write_line("  ".join(cells))
