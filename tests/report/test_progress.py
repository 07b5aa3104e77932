"""Is the bar seen where somebody looks, and silent everywhere else?"""

import io

import pytest
from rich.console import Console

from numgeom.report.progress import progress_bar


def shown(*, terminal: bool, quiet: bool, what: str = "replay") -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, width=80)
    with progress_bar(quiet=quiet, console=console) as advance:
        for done in range(1, 201):
            advance(what, done, 200)
    return buffer.getvalue()


def test_a_terminal_sees_what_is_being_done() -> None:
    assert "replay" in shown(terminal=True, quiet=False)


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (False, True), (True, True)])
def test_nothing_is_shown_where_nobody_looks(terminal: bool, quiet: bool) -> None:
    assert shown(terminal=terminal, quiet=quiet) == ""


@pytest.mark.parametrize("name", ["loading [bold]x[/]", "loading a.py:f[0]", "[/wrong]", "back\\"])
def test_a_name_is_no_markup(name: str) -> None:
    assert name.split("[")[0] in shown(terminal=True, quiet=False, what=name)
    assert "[" not in name or "[" in shown(terminal=True, quiet=False, what=name)


def test_the_bar_ends_when_the_work_fails() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)

    def work(*, fails: bool) -> None:
        with progress_bar(console=console) as advance:
            advance("replay", 1, 2)
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(fails=True)
    work(fails=False)  # rich allows one live display at a time


def test_standard_output_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as advance:
        advance("replay", 1, 2)
    assert capsys.readouterr().out == ""
