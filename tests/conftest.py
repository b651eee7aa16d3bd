"""What holds for every test: with TORCHMODEL_NO_SKIPS set, as in CI, a skipped test is a failure."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# a property is about answers, not about how busy the machine is
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """The engine has its thread flush denormals; a test that runs it in pytest's own must not leave that to hypothesis."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_flush_denormal(False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("TORCHMODEL_NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("TORCHMODEL_NO_SKIPS") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("TORCHMODEL_NO_SKIPS is set: skipped tests count as failures.", red=True)
