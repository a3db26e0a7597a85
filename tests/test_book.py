"""The built book: complete, without warnings, and with links that lead somewhere."""

import ast
import json
import re
from urllib.parse import unquote, urlsplit

import jupytext
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from jupyter_cache import get_cache
from PIL import Image

from conftest import CONTENT, ROOT, SOURCES, build_book
from pong.set_up import facts, recorded


def toc_pages():
    """Return the pages of the table of contents, in its order, without suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"]] + [
        chapter["file"] for part in toc["parts"] for chapter in part["chapters"]
    ]


PAGES = toc_pages()
TITLES = {
    page: re.search(
        r"^# (.+)$", (CONTENT / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE
    )[1]
    for page in PAGES
}
NOTEBOOKS = [path.stem for path in SOURCES]


WITH_VIDEOS = (
    "index", "inside-the-agent", "pong-from-pixels", "train-to-win",
    "video-playback",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(book):
    """Return the parsed HTML of each page."""
    return {
        page: BeautifulSoup(
            (book.html / f"{page}.html").read_text(encoding="utf-8"), "html.parser"
        )
        for page in PAGES
    }


@pytest.fixture(params=NOTEBOOKS)
def executed(request, book, pages):
    """Return the name, the parsed page and the executed cells of a notebook."""
    name = request.param
    cache = get_cache(ROOT / "_build" / ".jupyter_cache")
    source = jupytext.read(CONTENT / f"{name}.md")
    _, notebook = cache.merge_match_into_notebook(source)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return name, pages[name], cells


def test_every_page_is_in_the_table_of_contents():
    """Otherwise the build leaves it out, and does not even warn."""
    assert {path.stem for path in CONTENT.glob("*.md")} == set(PAGES)


def test_book_builds_without_a_warning(book):
    assert "build succeeded" in book.log
    assert "WARNING" not in book.log
    assert str(book.html.relative_to(ROOT)) in book.log.replace("\\", "/")


def test_nothing_is_done_twice(book):
    """The fixture has built the book, so a second run finds nothing to do."""
    again = build_book()
    assert "no targets are out of date" in again.log
    assert "Executing notebook" not in again.log


def test_every_code_cell_has_its_output(executed):
    _, soup, cells = executed
    shown = soup.select("article div.cell")
    cells = [c for c in cells if "remove-cell" not in c.metadata.get("tags", [])]
    assert len(shown) == len(cells) > 0
    for html, cell in zip(shown, cells):
        assert cell.execution_count, cell.source
        hidden = "remove-stderr" in cell.metadata.get("tags", [])
        outputs = [
            output
            for output in cell.outputs
            if not (hidden and output.get("name") == "stderr")
        ]
        assert bool(html.select_one(".cell_output")) == bool(outputs), cell.source
        assert bool(html.select_one(".cell_input")), cell.source


def said(cell):
    """Return the text that a cell has printed and returned."""
    texts = (o.get("text", o.get("data", {}).get("text/plain")) for o in cell.outputs)
    return "".join(filter(None, texts))


def test_outputs_are_those_of_the_notebook(executed):
    """Where they depend neither on the computer nor on the budget."""
    name, _, cells = executed
    notebook = nbformat.read(CONTENT / f"{name}.ipynb", 4)
    copies = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, copy in zip(cells, copies, strict=True):
        if "nbval-check-output" in cell.metadata.get("tags", []):
            assert said(cell) == said(copy) != "", cell.source


def test_something_happens_after_every_few_cells(executed):
    """Folded code counts, too."""
    _, _, cells = executed
    lines = definitions = 0
    for cell in cells:
        code = [s for s in cell.source.splitlines() if s.strip()]
        lines += len([s for s in code if not s.lstrip().startswith("#")])
        nodes = ast.parse(cell.source).body
        kinds = (ast.FunctionDef, ast.ClassDef)
        definitions += sum(isinstance(node, kinds) for node in nodes)
        assert lines <= 80, cell.source
        assert definitions <= 3, cell.source
        if cell.outputs:
            lines = definitions = 0


def test_no_error_reached_a_page(executed, book):
    name, soup, cells = executed
    assert "Traceback" not in soup.article.get_text()
    assert not soup.select(".traceback, .stderr, .system-message")
    for cell in cells:
        kinds = {o.get("name", o.output_type) for o in cell.outputs}
        assert "error" not in kinds
        bars = "remove-stderr" in cell.metadata.get("tags", [])
        assert bars or "stderr" not in kinds, cell.source
    assert not list((book.html / "reports").glob("**/*.log")), name


def test_pictures_have_a_text(pages):
    for page, soup in pages.items():
        for image in soup.article.find_all("img"):
            text = image.get("alt", "")
            assert len(text) > 40, (page, image.get("src"))
            assert "_images" not in text


@pytest.mark.parametrize("page", ["index", *NOTEBOOKS])
def test_videos_are_files_with_controls_a_poster_and_a_text(book, pages, page):
    assert not pages[page].select('[src^="data:video"]')
    videos = pages[page].article.find_all("video")
    assert videos or page not in WITH_VIDEOS
    for video in videos:
        assert video.has_attr("controls")
        assert video.has_attr("muted")
        assert video["preload"] == "none"
        folder = (book.html / page).parent
        with Image.open(folder / video["poster"]) as poster:
            width, height = poster.size
        assert int(video["width"]) / int(video["height"]) == pytest.approx(
            width / height, abs=0.01
        )
        assert (folder / video["src"]).stat().st_size < 2_000_000
        assert (folder / video["poster"]).stat().st_size < 50_000
        # A label for those who do not see it, and a caption for all.
        caption = video.find_parent("figure").figcaption
        assert len(video["aria-label"]) > 40
        assert caption.get_text().strip()


def test_notebooks_hold_their_videos(executed):
    """They play where only the notebook is: the files are for the pages."""
    _, soup, cells = executed
    outputs = str([cell.outputs for cell in cells])
    embedded = outputs.count("data:video/mp4;base64,")
    assert embedded == len(soup.select("article div.cell video"))


def test_internal_links_lead_somewhere(book, config):
    prefix = f"/{config['repository']['url'].rsplit('/', 1)[-1]}/"
    soups = {
        path.resolve(): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in book.html.glob("**/*.html")
        if "_static" not in path.parts
    }
    checked = 0
    for path, soup in soups.items():
        links = [(a["href"], a) for a in soup.find_all("a", href=True)]
        links += [(i["src"], i) for i in soup.find_all(["img", "video"])]
        links += [(i["poster"], i) for i in soup.find_all("video")]
        links += [(i["href"], i) for i in soup.select("head link[href]")]
        for link, tag in links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("#", ""):
                continue
            target = path
            if parts.path.startswith(prefix):  # on the page for lost readers
                target = (
                    book.html / unquote(parts.path.removeprefix(prefix))
                ).resolve()
            elif parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
            assert target.exists(), (path.name, link)
            if parts.fragment and target in soups and tag.name == "a":
                anchor = unquote(parts.fragment)
                found = soups[target].find(id=anchor)
                assert found is not None, (path.name, link)
            checked += 1
    assert checked > 100


def test_bibliography_is_cited_and_found_in_the_world():
    bib = (CONTENT / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),(.*?)^\}", bib, re.MULTILINE | re.DOTALL)
    sources = "".join(path.read_text(encoding="utf-8") for path in CONTENT.glob("*.md"))
    roles = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", sources)
    cited = {key.strip() for role in roles for key in role.split(",")}
    assert {key for key, _ in entries} == cited
    for key, fields in entries:
        assert re.search(r"^\s*(doi|url)\s*=", fields, re.MULTILINE), key


def test_glossary_defines_the_terms_of_the_field(pages):
    entries = pages["glossary"].select("dl.glossary dt")
    terms = {entry["id"].lower() for entry in entries}
    for term in (
        "environment", "episode", "action", "reward", "state", "observation",
        "policy", "return", "cumulative-reward", "value-function", "action-value",
        "discount-factor", "trajectory", "on-policy", "policy-gradient",
        "gradient-ascent", "advantage", "baseline", "logit", "batch",
        "learning-rate", "optimizer", "approximate-kl-divergence", "bootstrap",
        "entropy", "epoch", "explained-variance", "greedy", "minibatch", "nat",
        "rollout", "staleness", "steep-stroke", "clip-fraction", "ablation",
    ):  # fmt: skip
        assert f"term-{term}" in terms


def launch_addresses(config, name):
    """Return where Colab and Binder open a notebook."""
    slug = config["repository"]["url"].removeprefix("https://github.com/")
    branch, path = config["repository"]["branch"], f"content/{name}.ipynb"
    return [
        f"https://colab.research.google.com/github/{slug}/blob/{branch}/{path}",
        f"https://mybinder.org/v2/gh/{slug}/{branch}?urlpath=lab/tree/{path}",
    ]


def test_launch_buttons_open_the_notebook(executed, config):
    name, soup, _ = executed
    links = [a["href"] for a in soup.select(".header-article-items a[href]")]
    launches = [link for link in links if "colab" in link or "mybinder" in link]
    assert sorted(launches) == launch_addresses(config, name)
    downloads = [link for link in links if "_sources" in link]
    assert {link.rsplit(".", 1)[-1] for link in downloads} == {"ipynb", "md"}


# Found and shared


def test_every_page_tells_what_it_is(book, pages, config):
    owner, name = config["repository"]["url"].split("/")[-2:]
    address = f"https://{owner.lower()}.github.io/{name}/"
    said = {"title": set(), "description": set()}
    for page, soup in pages.items():
        metas = {
            tag.get("property") or tag.get("name"): tag.get("content")
            for tag in soup.head.find_all("meta")
        }
        assert soup.head.title.get_text().startswith(TITLES[PAGES[0]]) or (
            soup.head.title.get_text().startswith(metas["og:title"])
        )
        assert 50 <= len(metas["description"]) <= 210, page
        assert metas["og:description"] == metas["description"]
        front = (CONTENT / f"{page}.md").read_text(encoding="utf-8")
        about = yaml.safe_load(front.split("---")[1])["myst"]["html_meta"]
        assert metas["description"] == about["description"]
        assert metas["og:url"] == f"{address}{page}.html"
        canonical = soup.head.find("link", rel="canonical")["href"]
        assert canonical == metas["og:url"]
        assert metas["og:image"] == f"{address}share.png"
        assert len(metas["og:image:alt"]) > 100
        assert metas["twitter:card"] == "summary_large_image"
        said["title"].add(soup.head.title.get_text())
        said["description"].add(metas["description"])
    assert all(len(texts) == len(PAGES) for texts in said.values())
    with Image.open(book.html / "share.png") as picture:
        assert picture.size == (1200, 630)
    assert (book.html / "share.png").stat().st_size < 300_000


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
            assert not section or pages[target].find(id=section), new


def test_sitemap_lists_the_pages(book, pages):
    text = (book.html / "sitemap.xml").read_text(encoding="utf-8")
    assert set(re.findall(r"<loc>(.*?)</loc>", text)) == {
        soup.head.find("link", rel="canonical")["href"] for soup in pages.values()
    }


def test_logo_and_icon_are_our_own(book, pages):
    for page, soup in pages.items():
        folder = (book.html / page).parent
        icon = soup.head.find("link", rel="icon")["href"]
        logo = soup.select_one("a.navbar-brand img")
        assert "Pong from pixels" in logo["alt"]
        for link, name in ((icon, "favicon.svg"), (logo["src"], "logo.svg")):
            source = CONTENT / "images" / name
            assert (folder / link).read_bytes() == source.read_bytes(), page


def test_first_page_leads_on(pages, config):
    article = pages[PAGES[0]].article
    links = {a["href"] for a in article.find_all("a", href=True)}
    buttons = {a["href"] for a in article.select("a.sd-btn")}
    assert {"pong-from-pixels.html", "train-to-win.html"} <= buttons
    assert {*launch_addresses(config, PAGES[1])} <= links
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


def test_pages_carry_no_more_than_they_use(pages):
    for page, soup in pages.items():
        loaded = str(soup.head)
        assert "fontawesome.js" not in loaded
        assert "searchindex.js" not in loaded
        for script in soup.find_all("script", src=True):
            waits = script.has_attr("defer") or script.get("type") == "module"
            assert waits, (page, script["src"])
        images = soup.article.find_all("img", src=True)
        for number, image in enumerate(images):
            if not image["src"].endswith(".svg"):
                assert image.has_attr("height"), (page, image["src"])
            assert number == 0 or image.get("loading") == "lazy", page
