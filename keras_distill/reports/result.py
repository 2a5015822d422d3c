"""A report: facts and a verdict, and the files that are made of them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

from keras_distill.export.placing import place_file
from keras_distill.reports.codec import decode, encode
from keras_distill.reports.facts import Facts
from keras_distill.reports.pages import as_html, as_markdown
from keras_distill.reports.verdict import Verdict

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` returns.

    Attributes:
        facts: All that was measured.
        verdict: What the rules say of it.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile, keras_distill as kd
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
        >>> made = kd.report(model, model, (x, y))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.json"
        >>> made.save(path)
        >>> kd.Report.load(path) == made
        True
    """

    facts: Facts
    verdict: Verdict

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report, whole or not at all.

        Args:
            path: A name that ends in `.html`, for one page that needs nothing
                else; `.md`, for tables without HTML; or `.json`, for all
                facts.

        Raises:
            ValueError: If it ends in something else.
            FileNotFoundError: If there is no such folder.
            ImportError: If a package is missing.
        """
        path = pathlib.Path(path)
        write = _WRITERS.get(path.suffix)
        if write is None:
            raise ValueError(
                "A report is a page, a text or its facts. Received: path="
                f"'{path}'. Use a name that ends in .html, .md or .json."
            )
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(
                "There is no such folder to write to. Received: path="
                f"'{path}'. Make it first."
            )
        place_file(path, write(self).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read a report that was saved as JSON.

        Args:
            path: The file.

        Raises:
            ValueError: If it holds no report, or one of another format.
        """
        text = pathlib.Path(path).read_bytes()
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            report: Report = decode(cls, content["report"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "A report is read from its JSON, of this version's format. "
                f"Received: path='{path}', {type(error).__name__}: {error}."
            ) from error
        return report


def _as_json(report: Report) -> str:
    content = {"format": _FORMAT, "report": encode(report)}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


_WRITERS: dict[str, Callable[[Report], str]] = {
    ".html": lambda report: as_html(report.facts, report.verdict),
    ".json": _as_json,
    ".md": lambda report: as_markdown(report.facts, report.verdict),
}
