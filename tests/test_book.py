"""The built book: complete, without warnings, and with links that lead somewhere."""

import ast
import json
import re
from urllib.parse import unquote, urljoin, urlsplit

import jupytext
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from jupyter_cache import get_cache
from PIL import Image

from conftest import CONTENT, ROOT, SOURCES, build_book
from pong.set_up import facts, recorded

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
CHAPTERS = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [TOC["root"], *CHAPTERS]
TEXTS = {page: (CONTENT / f"{page}.md").read_text(encoding="utf-8") for page in PAGES}
TITLES = {page: re.search("^# (.+)$", text, re.M)[1] for page, text in TEXTS.items()}
NOTEBOOKS = [path.stem for path in SOURCES]
WITH_VIDEOS = (
    "index", "inside-the-agent", "pong-from-pixels", "train-to-win", "video-playback",
)  # fmt: skip


@pytest.fixture(scope="module")
def soups(book):
    """Return the parsed HTML of all pages, also the old and the missing ones."""
    found = {}
    for path in book.html.rglob("*.html"):
        if "_static" not in path.parts:
            name = path.relative_to(book.html).as_posix().removesuffix(".html")
            found[name] = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    return found


@pytest.fixture(scope="module")
def pages(soups):
    """Return the parsed HTML of the pages in the table of contents."""
    return {page: soups[page] for page in PAGES}


@pytest.fixture(scope="module")
def executed(book):
    """Return the executed code cells of each notebook."""
    cache = get_cache(ROOT / "_build" / ".jupyter_cache")
    cells = {}
    for source in SOURCES:
        _, notebook = cache.merge_match_into_notebook(jupytext.read(source))
        cells[source.stem] = [c for c in notebook.cells if c.cell_type == "code"]
    return cells


def test_every_page_is_in_the_table_of_contents():
    """Otherwise the build leaves it out, and does not even warn."""
    assert {path.stem for path in CONTENT.glob("*.md")} == set(PAGES)


def test_book_builds_without_a_warning_and_only_once(book):
    """The fixture has built it, so a second run finds nothing to do."""
    assert "WARNING" not in book.log
    assert str(book.html.relative_to(ROOT)) in book.log.replace("\\", "/")
    again = build_book()
    assert "no targets are out of date" in again.log
    assert "Executing notebook" not in again.log


def test_every_code_cell_has_its_output_and_no_error(executed, pages):
    for name, cells in executed.items():
        for html, cell in zip(pages[name].select("article .cell"), cells, strict=True):
            assert cell.execution_count, cell.source
            outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            assert bool(html.select(".cell_output")) == bool(outputs), cell.source
            assert html.select(".cell_input"), cell.source
        assert "Traceback" not in pages[name].article.get_text()
        assert not pages[name].select(".traceback, .stderr, .system-message")


def said(cell):
    """Return the text that a cell has printed and returned."""
    texts = (o.get("text", o.get("data", {}).get("text/plain")) for o in cell.outputs)
    return "".join(filter(None, texts))


def test_outputs_are_those_of_the_notebook(executed):
    """Where they depend neither on the computer nor on the budget."""
    for name, cells in executed.items():
        notebook = nbformat.read(CONTENT / f"{name}.ipynb", 4)
        copies = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell, copy in zip(cells, copies, strict=True):
            if "nbval-check-output" in cell.metadata.get("tags", []):
                assert said(cell) == said(copy) != "", cell.source


def test_something_happens_after_every_few_cells(executed):
    for cells in executed.values():
        lines = definitions = 0
        for cell in cells:
            lines += len(re.findall(r"^\s*[^\s#]", cell.source, re.MULTILINE))
            for node in ast.parse(cell.source).body:
                definitions += isinstance(node, ast.FunctionDef | ast.ClassDef)
            assert lines <= 80 and definitions <= 3, cell.source
            if cell.outputs:
                lines = definitions = 0


def test_pictures_have_a_text_and_come_when_they_are_near(pages):
    for page, soup in pages.items():
        for number, image in enumerate(soup.article.find_all("img")):
            text = image.get("alt", "")
            assert len(text) > 40, (page, image["src"])
            assert "_images" not in text
            sized = image.has_attr("height") or image["src"].endswith(".svg")
            assert sized, (page, image["src"])
            assert number == 0 or image.get("loading") == "lazy", page


def test_videos_have_a_poster_and_a_text(book, pages):
    """That they play, and not by themselves, test_browser.py says."""
    for page, soup in pages.items():
        videos = soup.article.find_all("video")
        assert videos or page not in WITH_VIDEOS
        for video in videos:
            with Image.open(book.html / video["poster"]) as poster:
                width, height = poster.size
            assert (width, height) in {(160, 210), (640, 448)}
            shape = int(video["width"]) / int(video["height"])
            assert shape == pytest.approx(width / height, abs=0.01)
            assert (book.html / video["src"]).stat().st_size < 2_000_000
            assert (book.html / video["poster"]).stat().st_size < 50_000
            # A label for those who do not see it, and a caption for all.
            assert len(video["aria-label"]) > 40
            assert video.find_parent("figure").figcaption.get_text().strip()


def test_notebooks_hold_their_videos(executed, pages):
    """They play where only the notebook is: the files are for the pages."""
    for name, cells in executed.items():
        embedded = str([c.outputs for c in cells]).count("data:video/mp4;base64,")
        assert embedded == len(pages[name].select("article div.cell video")), name


def test_internal_links_lead_somewhere(book, soups, config):
    # The page for lost readers has absolute ones.
    prefix = f"/{config['repository']['url'].rsplit('/', 1)[-1]}/"
    ids = {name: {tag["id"] for tag in s.select("[id]")} for name, s in soups.items()}
    for name, soup in soups.items():
        for key in ("href", "poster", "src"):
            for tag in soup.select(f"[{key}]"):
                link = urljoin(f"http://book{prefix}{name}.html", tag[key])
                parts = urlsplit(link)
                if parts.netloc != "book":
                    continue
                target = unquote(parts.path).removeprefix(prefix)
                assert (book.html / target).exists(), (name, link)
                if parts.fragment and tag.name == "a":
                    there = ids[target.removesuffix(".html")]
                    assert unquote(parts.fragment) in there, (name, link)


def test_every_source_is_cited_and_found_in_the_world(pages):
    sources = pages["references"].select(".citation")
    bib = (CONTENT / "references.bib").read_text(encoding="utf-8")
    assert len(sources) == len(re.findall("^@", bib, re.MULTILINE))
    for source in sources:
        assert source.select("a.external"), source


def launch_addresses(config, name):
    """Return where Colab and Binder open a notebook."""
    slug = config["repository"]["url"].removeprefix("https://github.com/")
    branch, path = config["repository"]["branch"], f"content/{name}.ipynb"
    return {
        f"https://colab.research.google.com/github/{slug}/blob/{branch}/{path}",
        f"https://mybinder.org/v2/gh/{slug}/{branch}?urlpath=lab/tree/{path}",
    }


def test_launch_buttons_open_the_notebook(pages, config):
    for name in NOTEBOOKS:
        links = {a["href"] for a in pages[name].select(".header-article-items a[href]")}
        assert launch_addresses(config, name) <= links
        kinds = {link.rpartition(".")[2] for link in links if "_sources" in link}
        assert kinds == {"ipynb", "md"}


def test_first_page_leads_on(pages, config):
    article = pages[PAGES[0]].article
    links = {a["href"] for a in article.find_all("a", href=True)}
    buttons = {a["href"] for a in article.select("a.sd-btn")}
    assert {"pong-from-pixels.html", "train-to-win.html"} <= buttons
    assert launch_addresses(config, PAGES[1]) <= links
    assert {f"{page}.html" for page in PAGES[1:]} <= links


def test_first_page_says_what_was_recorded(pages):
    """Look for the figures of the recorded files in the text."""
    returns = recorded("evaluation").query("actions == 'greedy'")["return"]
    text = " ".join(pages[PAGES[0]].article.get_text().split())
    assert f"won {sum(returns > 0)} of {len(returns)} games" in text
    assert f"by {returns.mean():.1f} points" in text
    for name in ("before", "after"):
        assert f"{facts('games')[name]['return']:+.0f} point" in text
    curve = pages[PAGES[0]].article.select_one("svg[role=img]")
    assert "learning curves" in curve["aria-label"]
    assert len(curve.select("[id^=line2d]")) > 5


def test_old_addresses_lead_to_the_pages(book, config):
    moved = config["sphinx"]["config"]["redirects"]
    assert len(moved) == 9
    for old, new in moved.items():
        text = (book.html / f"{old}.html").read_text(encoding="utf-8")
        assert f'"{new}"' in text and "location.hash" in text
        assert (book.html / "content" / new).resolve().exists()


def test_sections_that_moved_are_where_they_should_be(pages):
    moved = json.loads((CONTENT / "_static/moved.json").read_text("utf-8"))
    for page, sections in moved.items():
        for old, new in sections.items():
            assert not pages[page].find(id=old), (page, old)
            target, _, section = new.partition("#")
            assert pages[target].find(id=section or True), new


# Found and shared


def test_every_page_tells_what_it_is(book, pages, config):
    owner, name = config["repository"]["url"].split("/")[-2:]
    site = f"https://{owner.lower()}.github.io/{name}/"
    addresses, descriptions = set(), set()
    for page, soup in pages.items():
        tags = soup.head.find_all("meta")
        metas = {t.get("property") or t.get("name"): t.get("content") for t in tags}
        front = yaml.safe_load(TEXTS[page].split("---")[1])
        about = front["myst"]["html_meta"]["description"]
        assert 50 <= len(about) <= 210, page
        assert metas["description"] == metas["og:description"] == about
        address = soup.head.find("link", rel="canonical")["href"]
        assert address == metas["og:url"] == f"{site}{page}.html"
        assert metas["og:image"] == f"{site}share.png"
        assert len(metas["og:image:alt"]) > 100
        assert metas["twitter:card"] == "summary_large_image"
        assert soup.head.title.get_text().startswith(TITLES[page])
        addresses.add(address)
        descriptions.add(about)
    assert len(descriptions) == len(PAGES)
    with Image.open(book.html / "share.png") as picture:
        assert picture.size == (1200, 630)
    assert (book.html / "share.png").stat().st_size < 300_000
    sitemap = (book.html / "sitemap.xml").read_text(encoding="utf-8")
    assert set(re.findall(r"<loc>(.*?)</loc>", sitemap)) == addresses
