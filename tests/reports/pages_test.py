"""A report as HTML, Markdown and JSON."""

import dataclasses
import html.parser
import itertools
import json
import re

import pytest
import report_facts as made
from support import only_on

import keras_distill as kd
from keras_distill.reports.codec import decode, encode
from keras_distill.reports.packages import require_report_packages
from keras_distill.reports.pages import plain_markdown
from keras_distill.reports.verdict import judge

pytestmark = only_on("torch")

EVIL = '<script>alert("1")</script>'
EVIL_NAMES = (EVIL, "$a$ & $b", "a|b", "--> ]]> 1.23456 #010101")
VOID = {"meta", "img", "br", "path", "use"}
# Of the drawings, written with or without an end.
EMPTY = {"path", "use"}


def report_of(facts):
    return kd.Report(facts, judge(facts))


@pytest.fixture(scope="module")
def facts():
    return made.constructed()


@pytest.fixture(scope="module")
def evil(facts):
    first = dataclasses.replace(facts.runs[0], name=EVIL, finished=3)
    runs = (first, *facts.runs[1:])
    return dataclasses.replace(
        facts,
        classes=EVIL_NAMES,
        command=EVIL,
        environment={EVIL: EVIL},
        runs=runs,
    )


def saved(facts, folder, suffix):
    path = folder / f"report{suffix}"
    report_of(facts).save(path)
    return path.read_text("utf-8")


class Page(html.parser.HTMLParser):
    """Elements in order, and whether each that begins ends."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), attrs
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        if tag in EMPTY:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [found for found in self.elements if found[0] == tag]


@pytest.fixture(scope="module")
def text(facts, tmp_path_factory):
    return saved(facts, tmp_path_factory.mktemp("page"), ".html")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_page_is_whole_and_has_a_language(page, text):
    assert text.startswith("<!doctype html>")
    assert page.all("html")[0][1]["lang"] == "en"
    (title,) = page.all("title")
    assert title
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_page_needs_nothing_else(page, text):
    assert "://" not in text
    assert not page.all("script")
    assert not page.all("link")
    assert "@import" not in text
    for _, attrs, _ in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png"))
    assert set(re.findall(r"url\(([^#])", text)) == set()


def test_page_says_its_pictures_in_words(page, facts):
    assert len(page.all("img")) == len(facts.soft_targets)
    for _, attrs, _ in page.all("img"):
        assert "of class class" in attrs["alt"]
    shown = [a for _, a, _ in page.elements if a.get("role") == "img"]
    assert len(shown) == len(page.all("svg"))
    for attrs in shown:
        assert re.search(r"\d", attrs["aria-label"])
    for _, attrs, inside in page.all("svg"):
        assert attrs["aria-hidden"] == "true"
        assert inside[-2:] == ("figure", "div")


def test_headings_are_in_order(page):
    levels = [int(t[1]) for t, *_ in page.elements if t in ("h1", "h2", "h3")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    for before, after in itertools.pairwise(levels):
        assert after <= before + 1


def test_tables_have_names_and_heads(page):
    for tag, attrs, _ in page.elements:
        if tag == "th":
            assert attrs["scope"] in ("col", "row", "colgroup")
    assert len(page.all("table")) > 8
    groups = [a for _, a, _ in page.elements if a.get("role") == "group"]
    # Each can be scrolled with the keyboard, and says what it is.
    assert len(groups) == len(page.all("table"))
    for attrs in groups:
        assert attrs["aria-label"]
        assert attrs["tabindex"] == "0"


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def mixed(color, page, share):
    pairs = [
        (int(color[i : i + 2], 16), int(page[i : i + 2], 16)) for i in (1, 3, 5)
    ]
    return "#" + "".join(
        f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs
    )


def test_colours_can_be_read_in_light_and_in_dark(text):
    themes = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", text, re.S)
    ]
    assert len(themes) == 2
    assert themes[0].keys() == themes[1].keys()
    for theme in themes:
        surfaces = theme["page"], theme["panel"]
        for name in theme.keys() - {"page", "panel", "line"}:
            for surface in surfaces:
                assert contrast(theme[name], surface) >= 4.5, name
        for group in ("teacher", "alone", "distilled"):
            # Numbers on the darkest cells of a matrix, and on bars.
            for surface, share in zip(surfaces, (0.45, 0.28), strict=True):
                cell = mixed(theme[group], surface, share)
                assert contrast(theme["ink"], cell) >= 4.5, group


def test_drawings_have_the_pages_colours(text):
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) > 8
    for drawing in drawings:
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing))
        assert all(c == "none" or c.startswith("var(--") for c in colours)


def test_page_stays_small(tmp_path):
    facts = made.constructed(classes=10, pairs=5, epochs=100, examples=2000)
    assert len(saved(facts, tmp_path, ".html").encode()) < 1e6


def test_many_classes_have_no_matrices(tmp_path):
    facts = made.constructed(classes=200, examples=400, epochs=3)
    assert facts.teacher.confusion is None
    content = saved(facts, tmp_path, ".html")
    assert "Confusion matrix" not in content
    assert len(content.encode()) < 4e5


def test_two_classes_have_one_wrong_one(tmp_path):
    facts = made.constructed(classes=2)
    for suffix in (".html", ".md"):
        assert "With two classes" in saved(facts, tmp_path, suffix)


def test_names_are_texts_and_not_html(evil, tmp_path):
    content = saved(evil, tmp_path, ".html")
    assert "<script" not in content
    page = Page(content)
    assert not page.all("script")
    texts = "".join(page.texts)
    for name in EVIL_NAMES:
        assert name in texts
    assert f"distilled, {EVIL}" in texts


def test_markdown_has_no_html(evil, facts, tmp_path):
    content = saved(facts, tmp_path, ".md")
    assert not re.search(r"<\S", content)
    assert "Distilling gained" in content.splitlines()[0]
    assert "| int8 | 8.8 KiB |" in content
    for block in re.findall(r"(?:^\|.*\n)+", content, re.M):
        columns = [len(re.findall(r"\|", x)) for x in block.splitlines()]
        assert len(set(columns)) == 1, block
        assert re.fullmatch(r"\|(---\|)+", block.splitlines()[1])
    content = saved(evil, tmp_path, ".md")
    assert not re.search(r"(?<!\\)<\S", content)
    for block in re.findall(r"(?:^\|.*\n)+", content, re.M):
        columns = [len(re.findall(r"(?<!\\)\|", x)) for x in block.splitlines()]
        assert len(set(columns)) == 1, block


def test_markdown_shows_a_name_as_it_is():
    assert plain_markdown("a|b *c* <d>\nnext_line") == (
        r"a\|b \*c\* \<d\> next\_line"
    )


def test_json_has_all_facts(evil, tmp_path):
    for facts in (evil, made.constructed(classes=2)):
        report = report_of(facts)
        report.save(tmp_path / "report.json")
        assert kd.Report.load(tmp_path / "report.json") == report
        content = json.loads((tmp_path / "report.json").read_text("utf-8"))
        assert content["report"]["facts"]["command"] == facts.command


def test_json_keeps_what_is_missing(facts, tmp_path):
    less = dataclasses.replace(
        facts, alone=None, gain=None, teacher_lead=None, seeds=None, exports=()
    )
    less = made.with_curves(less, loss=(1.0, None))
    for suffix in (".json", ".md", ".html"):
        saved(less, tmp_path, suffix)
    assert kd.Report.load(tmp_path / "report.json") == report_of(less)


def test_codec_needs_each_field(facts):
    content = encode(facts)
    del content["examples"]
    with pytest.raises(KeyError, match="examples"):
        decode(type(facts), content)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 2}', '{"format": 1, "report": {"facts": 1}}'],
)
def test_what_is_no_report_is_refused(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"Received: path='.*report\.json'"):
        kd.Report.load(path)


def test_incomplete_runs_come_first(facts, tmp_path):
    cut = made.with_runs(facts, finished=7)
    content = saved(cut, tmp_path, ".html")
    head = content[: content.index("<main>")]
    assert "The runs are incomplete" in head
    assert "distilled, seed 0: 7 of 20 epochs" in head
    assert "interrupted" in content
    first = saved(cut, tmp_path, ".md")[:400]
    assert "**3 runs didn't finish.**" in first


def test_complete_runs_have_no_banner(text):
    assert 'class="banner"' not in text
    assert "All 6 runs finished 20 of 20 epochs." in text


def test_other_suffixes_are_refused(facts, tmp_path):
    with pytest.raises(ValueError, match=r"\.html, \.md or \.json"):
        report_of(facts).save(tmp_path / "report.pdf")
    with pytest.raises(FileNotFoundError, match="Make it first"):
        report_of(facts).save(tmp_path / "nowhere" / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(facts, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    report_of(facts).save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        report_of(facts).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_missing_is_named(monkeypatch):
    found = {"jinja2": None, "scipy": None}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: found.get(name, name)
    )
    with pytest.raises(
        ImportError, match=r"no jinja2 and no scipy.*\[report\]"
    ):
        require_report_packages()


def test_drawing_leaves_matplotlib_as_it_was(facts, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    saved(facts, tmp_path, ".html")
    assert dict(matplotlib.rcParams) == before
