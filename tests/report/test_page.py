from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from incremental_llm.report import CheckRow, LineageRow, ReportData, render, write_report
from incremental_llm.report.page import _lanes

PUBLISHED = ("average", "bwt", "fwt", "forgetting", "negative_flips")
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The tags of a page, its text, and whether every opened tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(with_baseline: ReportData) -> Page:
    return Page(render(with_baseline))


@pytest.fixture(scope="module")
def plain_page(data: ReportData) -> Page:
    return Page(render(data))


def test_tags_are_balanced_and_ids_unique(page: Page) -> None:
    assert page.open == []
    ids = [attributes["id"] for tag, attributes in page.tags if "id" in attributes and tag not in {"path", "clippath"}]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links and {str(link)[1:] for link in links} <= set(ids)


def test_texts_of_users_and_models_are_escaped(page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count('<script>alert("x")</script>') == 4, "two answers and two refused lines, as text"


@pytest.mark.parametrize("field", ["title", "base", "date", "machine"])
def test_every_field_of_the_head_is_escaped(empty: ReportData, field: str) -> None:
    html = render(dataclasses.replace(empty, **{field: "</title><script>x</script>"}))
    assert "<script" not in html


def test_the_page_loads_nothing(page: Page) -> None:
    loading = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}
    for tag, attributes in page.tags:
        for name in loading & attributes.keys():
            assert str(attributes[name]).startswith("#"), (tag, name, attributes[name])
        assert not re.search(r"url\((?!#)", attributes.get("style") or "")
    policy = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_style_sheet_imports_nothing() -> None:
    style = Path(str(sys.modules["incremental_llm.report.page"].__file__)).with_name("page.css").read_text()
    assert "@import" not in style and "url(" not in style
    for theme in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert theme in style
    used = set(re.findall(r"var\((--[a-z-]+)\)", style)) - {"--lane"}
    assert used <= set(re.findall(r"(--[a-z-]+):", style))


def test_unmeasured_is_said_and_never_zero(plain_page: Page) -> None:
    # matrix: 2 cells drawn and 2 in the table; metrics: fwt, forgetting; a check without result a night: after,
    # difference, interval, items; the head: peak memory
    assert plain_page.text.count("not measured") == 2 + 2 + 2 + 2 * 4 + 1
    assert "nan" not in plain_page.text.lower().split() and "None" not in plain_page.text


def test_verdict_and_reasons(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "v1 is in production. 2 nights: 1 promoted, 1 rejected. Night 2 was rejected and changed nothing." in text
    assert "alpha fell (and 1 more, below)" in text and "omega too" in text
    assert "[+0.700, +0.900]" in text and "the candidate has no result" in text
    assert "sft 5 new + 2 replay" in text and "make demo SEED=3" in text


def test_baseline_appears_only_when_given(plain_page: Page, page: Page) -> None:
    assert "Beside the plain baseline" not in plain_page.text
    assert "Baseline, v2" in page.text and "+0.50" in page.text


def test_an_empty_run_still_gives_a_page(empty: ReportData) -> None:
    page = Page(render(empty))
    assert page.open == [] and "The base model is in production. No night has run yet." in page.text


def test_lanes_branch_at_a_second_child() -> None:
    def row(version: int, parent: int | None) -> LineageRow:
        return LineageRow(version, parent, "increment", (), "", "")

    lineage = (row(3, 1), row(0, None), row(1, 0), row(2, 1), row(4, 3))
    assert [(lane, each.version) for lane, each in _lanes(lineage)] == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)]


def test_write_report_replaces_the_file_and_survives_half_a_surrogate(empty: ReportData, tmp_path: Path) -> None:
    target = tmp_path / "demo" / "report.html"
    write_report(empty, target)
    write_report(dataclasses.replace(empty, title="half \ud83d pair"), target)
    assert "half ? pair" in target.read_text(encoding="utf-8")
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_importing_the_report_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, incremental_llm.report; print({'torch', 'matplotlib', 'rich'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_passed_check_without_numbers_is_not_called_unmeasured(empty: ReportData, data: ReportData) -> None:
    check = CheckRow("corrections", True, None, None, None, None, None, None, None, "none to test")
    night = dataclasses.replace(data.nights[0], checks=(check,), losses={}, anchor_kl=[])
    html = render(
        dataclasses.replace(empty, nights=(night,), peak_memory_bytes=1, metrics=dict.fromkeys(PUBLISHED, 0.0))
    )
    assert "not measured" not in html and html.count('<td class="num">–</td>') == 6


def test_a_suite_that_nobody_guards_gets_no_tick(empty: ReportData, data: ReportData) -> None:
    check = CheckRow("old news", None, 0.92, 0.0, -0.92, -1.0, -0.8, 48, None, "superseded: reported, not guarded")
    html = render(dataclasses.replace(empty, nights=(dataclasses.replace(data.nights[0], checks=(check,)),)))
    assert "<td>not guarded</td>" in html
    assert "✓ passed" not in html and "✗ failed" not in html
