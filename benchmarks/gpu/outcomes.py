"""The tests that need a CUDA device, as figures."""

from benchmarks.gpu.report import Report


class Outcomes:
    """A plugin of pytest that reports each test as it ends."""

    def __init__(self, report: Report):
        self.report = report
        self.counts = dict.fromkeys(("passed", "failed", "skipped"), 0)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._count(report.outcome, report.nodeid, str(report.longrepr or ""))

    def pytest_collectreport(self, report) -> None:
        if report.outcome == "failed":
            self._count("failed", report.nodeid, str(report.longrepr))

    def _count(self, outcome: str, name: str, reason: str) -> None:
        self.counts[outcome] += 1
        self.report.figure(outcome, self.counts[outcome], "tests")
        if outcome != "passed":
            self.report.figure(name, outcome, note=reason.strip()[-300:])
