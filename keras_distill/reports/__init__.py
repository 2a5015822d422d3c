"""What a distillation did: measured, judged, and shown."""

from keras_distill.reports.facts import Facts as Facts
from keras_distill.reports.making import report as report
from keras_distill.reports.result import Report as Report
from keras_distill.reports.rules import Finding as Finding
from keras_distill.reports.verdict import Verdict as Verdict

__all__ = ["Facts", "Finding", "Report", "Verdict", "report"]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
