"""The verdict on a distillation: what the rules found, worst first."""

from __future__ import annotations

import dataclasses

from keras_distill.reports.facts import Facts
from keras_distill.reports.rules import RULES, Finding

_ORDER = ("problem", "warning", "good", "note")
# While one of these holds, the other figures mean little.
_INCOMPLETE = {"interrupted_runs", "failed_runs", "lost_numbers"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a report says of a distillation.

    `print(verdict)` shows it in a few lines.

    Attributes:
        headline: The gain in one sentence.
        findings: What the rules found, problems first. Each rule and its
            threshold is documented in `keras_distill.reports.rules`.
    """

    headline: str
    findings: tuple[Finding, ...]

    @property
    def obstacles(self) -> tuple[Finding, ...]:
        """Findings of runs that didn't come to their end, with numbers."""
        return tuple(f for f in self.findings if f.rule in _INCOMPLETE)

    def __str__(self) -> str:
        lines = [self.headline]
        for finding in self.findings:
            lines.append(f"[{finding.severity}] {finding.title}")
            lines += [
                f"    {text}" for text in (finding.seen, finding.advice) if text
            ]
        return "\n".join(lines)


def judge(facts: Facts) -> Verdict:
    """Ask each rule."""
    found = [finding for rule in RULES if (finding := rule(facts)) is not None]
    findings = sorted(found, key=lambda f: _ORDER.index(f.severity))
    (gain,) = (f for f in findings if f.rule == "gain_beyond_noise")
    verdict = Verdict(f"{gain.title}.", tuple(findings))
    if not verdict.obstacles:
        return verdict
    return dataclasses.replace(
        verdict, headline="The runs are incomplete: nothing is shown yet."
    )
