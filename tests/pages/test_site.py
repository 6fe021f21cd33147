# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The built site: links and pictures lead somewhere, the search finds what a reader types, and in a
browser no page is wider than the window, writes errors or asks another host for anything.

Continuous integration builds the site and runs these tests on it::

    PYRO_AEB_SITE=docs/_build/html python -m pytest tests/pages/test_site.py
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser, find_browser

if "PYRO_AEB_SITE" not in os.environ:
    pytest.skip("PYRO_AEB_SITE names no built site", allow_module_level=True)

SITE = Path(os.environ["PYRO_AEB_SITE"]).resolve()
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
WIDTHS = (1280, 390)  # a laptop's and a phone's
# What a reader types, and a page that must be among the results.
SEARCHES = {
    "logistic regression": "your_data",
    "classification": "your_data",
    "pandas": "your_data",
    "missing values": "your_data",
    "scikit-learn": "scikit_learn",
    "feature selection": "your_data",
    "prediction interval": "your_data",
    "checkpoint": "runs",
    "horseshoe": "priors",
}


class Page(HTMLParser):
    """The anchors of a page, and the addresses that it links to and loads."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.feed((SITE / name).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(filter(None, (values.get("id"), values.get("name"))))
        self.links += filter(None, [values.get("href")])
        self.pictures += filter(None, [values.get("src")])


@functools.cache
def parse(name: str) -> Page:
    return Page(name)


def resolve(page: str, address: str) -> tuple[Path, str] | None:
    """Return the file and the anchor of an address; None for one on another host."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    path = (SITE / page).parent / unquote(parts.path) if parts.path else SITE / page
    return path.resolve(), unquote(parts.fragment)


def is_dead(page: str, address: str) -> bool:
    target = resolve(page, address)
    if target is None:
        return False
    path, anchor = target
    if not path.is_file():
        return True
    is_page = path.suffix == ".html" and path.is_relative_to(SITE)
    return bool(anchor) and is_page and anchor not in parse(str(path.relative_to(SITE))).anchors


def test_the_site_has_pages() -> None:
    assert {"index.html", "search.html", "your_data.html"} <= set(PAGES)


def test_no_link_or_anchor_is_dead() -> None:
    dead = {(page, link) for page in PAGES for link in parse(page).links if is_dead(page, link)}
    assert dead == set()


def test_no_picture_or_script_is_missing() -> None:
    sources = {(page, source) for page in PAGES for source in parse(page).pictures}
    assert len(sources) > 100
    assert {pair for pair in sources if is_dead(*pair)} == set()


@pytest.mark.parametrize("words", SEARCHES)
def test_the_index_of_the_search_has(words: str) -> None:
    stem = pytest.importorskip("sphinx.search.en").SearchEnglish({}).stem
    text = (SITE / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))

    def documents(word: str) -> set[str]:
        numbers: list[int] = []
        for terms in (index["terms"], index["titleterms"]):
            entry = terms.get(stem(word.lower()), [])
            numbers += entry if isinstance(entry, list) else [entry]
        return {index["docnames"][number] for number in numbers}

    found = set.intersection(*map(documents, words.replace("-", " ").split()))
    assert SEARCHES[words] in found


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site served on this machine."""
    handler = functools.partial(QuietHandler, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome on the path")
    browser = Browser(program, str(tmp_path_factory.mktemp("profile")))
    yield browser
    browser.close()


# Elements that reach beyond the window, but for those in a box that scrolls, and those of a menu
# that waits outside of the window.
TOO_WIDE = """
    [...document.body.querySelectorAll('*')].filter(element => {
        const box = element.getBoundingClientRect();
        if (box.width === 0 || box.right <= document.documentElement.clientWidth + 1) return false;
        for (let each = element; each !== document.body; each = each.parentElement) {
            const style = getComputedStyle(each);
            if (style.position === 'fixed') return false;
            if (each !== element && ['auto', 'scroll'].includes(style.overflowX)) return false;
        }
        return true;
    }).slice(0, 3).map(element => element.outerHTML.slice(0, 120))
"""
WIDER_THAN_WINDOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SEARCHED = """
    new Promise(done => {
        const isDone = () => Search.title?.innerText === 'Search Results';
        const look = () => isDone() ? done() : setTimeout(look, 50);
        look();
    })
"""
TYPESET = "window.MathJax?.startup?.promise?.then(() => 0)"


@pytest.fixture(scope="module")
def visits(browser: Browser, address: str) -> dict[str, list[str]]:
    """What is wrong with the pages, by kind; the listings of sources are left out."""
    findings: dict[str, list[str]] = {"width": [], "errors": [], "hosts": []}
    for page in PAGES:
        if page.startswith("_modules/"):
            continue
        browser.resize(WIDTHS[0])
        browser.open(f"{address}/{page}")
        browser.evaluate(TYPESET)
        for width in WIDTHS:
            browser.resize(width)
            too_wide = browser.evaluate(TOO_WIDE)
            if browser.evaluate(WIDER_THAN_WINDOW) > 0 or too_wide:
                findings["width"].append(f"{page} at {width}: {too_wide}")
        for event in browser.events:
            kind, details = event["method"], event["params"]
            if kind == "Network.requestWillBeSent":
                url = details["request"]["url"]
                if not url.startswith((address, "data:", "blob:")):
                    findings["hosts"].append(f"{page}: {url}")
            elif (
                kind == "Runtime.exceptionThrown"
                or (kind == "Runtime.consoleAPICalled" and details["type"] == "error")
                or (kind == "Log.entryAdded" and details["entry"]["level"] == "error")
            ):
                findings["errors"].append(f"{page}: {json.dumps(details)[:300]}")
    return findings


@pytest.mark.parametrize("kind", ["width", "errors", "hosts"])
def test_no_page_has_a_fault_in_a_browser(visits: dict[str, list[str]], kind: str) -> None:
    assert visits[kind] == []


def test_formulas_are_typeset(browser: Browser, address: str, visits: object) -> None:
    browser.open(f"{address}/equations.html")
    browser.evaluate(TYPESET)
    assert browser.evaluate("document.querySelectorAll('mjx-container').length") > 10
    assert browser.evaluate("document.querySelectorAll('mjx-merror').length") == 0


@pytest.mark.parametrize("words", SEARCHES)
def test_the_search_finds(browser: Browser, address: str, words: str) -> None:
    browser.open(f"{address}/search.html?q={words.replace(' ', '+')}")
    browser.evaluate(SEARCHED)
    links = browser.evaluate(
        "[...document.querySelectorAll('#search-results li a')].map(link => link.pathname)"
    )
    assert f"/{SEARCHES[words]}.html" in links
