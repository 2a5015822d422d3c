"""Facts and a verdict as a page, or as a text."""

from __future__ import annotations

import re
from typing import Any

from keras_distill.reports import figures, tables, words
from keras_distill.reports.facts import Facts
from keras_distill.reports.packages import require_report_packages
from keras_distill.reports.pictures import png
from keras_distill.reports.verdict import Verdict


def as_html(facts: Facts, verdict: Verdict) -> str:
    """One page that needs no network, no script and no other file."""
    return _rendered(
        "report.html",
        facts,
        verdict,
        seeds=figures.seeds(facts),
        curves=figures.curves(facts),
        reliability=figures.reliability(facts),
        wrong_classes=figures.wrong_classes(facts),
    )


def as_markdown(facts: Facts, verdict: Verdict) -> str:
    """Tables and numbers, without HTML."""
    return _rendered("report.md", facts, verdict)


def _rendered(name: str, facts: Facts, verdict: Verdict, **drawn: Any) -> str:
    require_report_packages()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_distill.reports"),
        # Names of classes are the user's, and may look like tags.
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "count": words.count,
        "mark": as_mark,
        "number": words.number,
        "percent": words.percent,
        "plain": plain_markdown,
        "plural": words.plural,
        "png": png,
        "points": words.points,
        "share": words.short_percent,
        "size": words.size,
    }
    text: str = environment.get_template(name).render(
        facts=facts,
        verdict=verdict,
        groups=tables.groups(facts),
        tables=tables,
        words=words,
        **drawn,
    )
    return text


def plain_markdown(text: object) -> str:
    """A name that Markdown shows as it is, also within a table."""
    return re.sub(
        r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", " ".join(str(text).split())
    )


def as_mark(text: str) -> Any:
    """The page's own texts, with code between backticks."""
    import markupsafe

    return markupsafe.Markup(
        re.sub("`([^`]*)`", r"<code>\1</code>", str(markupsafe.escape(text)))
    )
