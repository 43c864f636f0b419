"""In CI a skipped test is a failure, and so is a run of none: green must mean that everything was tried.

A pytest plugin. At a desk a skip stays a skip, with its reason in the summary.
"""

import os

import pytest


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def _what_is_missing(reporter: pytest.TerminalReporter) -> list[str]:
    """One line per reason why the run does not count."""
    missing = []
    skipped = reporter.stats.get("skipped", [])
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        missing.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")
    if not any(reporter.stats.get(outcome) for outcome in ("passed", "failed", "error")):
        missing.append("no test ran")
    return missing


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says why a run without failures is red, above pytest's closing line."""
    if not _in_ci() or terminalreporter.config.option.collectonly:
        return
    missing = _what_is_missing(terminalreporter)
    if missing:
        terminalreporter.section("CI is set: a skipped test or a run of none is a failure", red=True, bold=True)
        for line in missing:
            terminalreporter.line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turns the exit code red. Under xdist only the controller has the terminal and the results of all workers."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not _in_ci() or hasattr(session.config, "workerinput") or reporter is None:
        return
    if session.config.option.collectonly:
        return
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and _what_is_missing(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
