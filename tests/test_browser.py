"""The pages in a real browser: light and dark, on a desktop and on a phone."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from conftest import ROOT
from pages import serve
from test_book import NOTEBOOKS, PAGES, TITLES, WITH_VIDEOS

SCREENSHOTS = ROOT / "_build" / "screenshots"
PREFIX = "/pong-from-pixels/"  # as on GitHub Pages: not at the root
EVERY_PAGE = [*PAGES, "search", "404"]
MOST_BYTES = 1_750_000  # of a page, unpacked, with all that belongs to it
AXE = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    "preload": False,  # it would ask for style sheets where there are none
}

# The pictures whose height does not fit their width; their padding does not count.
SQUASHED = """() => [...document.querySelectorAll("article img")].filter(image => {
    const style = getComputedStyle(image);
    const width = image.clientWidth - 2 * parseFloat(style.paddingLeft);
    const height = image.clientHeight - 2 * parseFloat(style.paddingTop);
    const shape = width / height;
    const natural = image.naturalWidth / image.naturalHeight;
    return Math.abs(shape / natural - 1) > 0.05;
}).map(image => image.alt)"""

# How long to wait for what must come, in milliseconds. Nothing here measures speed
# (tests/lighthouse.py does), and a computer that others use too may be very slow: one
# picture of a whole chapter, 50,000 pixels high, can take it more than a minute.
PATIENCE = 300_000

# Fetch what waits until the reader is near, lay it out, and wait until it is there.
ARRIVE = """async () => {
    const style = document.createElement("style");
    style.textContent = "div.cell { content-visibility: visible !important; }";
    document.head.append(style);
    for (const image of document.images) {
        image.loading = "eager";
        await image.decode();
    }
    window.dispatchEvent(new Event("scroll"));
}"""

# How much a page has fetched, but for its videos, and for MathJax, which is as large as it is.
WEIGHT = """() => {
    const parts = performance.getEntriesByType("resource")
        .filter(part => !/\\.mp4$|[/]mathjax[/]/.test(part.name));
    const page = performance.getEntriesByType("navigation")[0];
    return [page, ...parts].reduce((sum, part) => sum + part.decodedBodySize, 0);
}"""


@pytest.fixture(scope="module")
def site(book):
    """Serve the book on this computer, and return its address."""
    with serve(book.html, PREFIX) as address:
        yield address


@pytest.fixture
def visit(browser, site):
    """Return a function that opens a page, and fails on errors and requests."""
    contexts, problems = [], []

    def open_page(page, width=1280, scheme="light", section="", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        tab = context.new_page()
        tab.on(
            "console", lambda m: problems.append(m.text) if m.type == "error" else None
        )
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on(
            "requestfailed",
            # The browser itself stops what it no longer needs.
            lambda r: (
                None
                if r.failure == "net::ERR_ABORTED"
                else problems.append(f"failed: {r.url}")
            ),
        )
        tab.on(
            "request",
            lambda r: (
                None
                if r.url.startswith((site, "data:", "blob:"))
                else problems.append(f"foreign: {r.url}")
            ),
        )
        tab.goto(f"{site}{page}.html{section}", wait_until="load")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def typeset(tab):
    """Wait until every formula is set."""
    formulas = tab.locator("article .math").count()
    tab.wait_for_function(
        "n => document.querySelectorAll('article .math mjx-container').length >= n",
        arg=formulas,
        polling=200,  # more often would slow down what it waits for
    )
    assert not tab.locator("mjx-merror").count()
    return formulas


def check_barriers(tab):
    """Fail if axe finds something that keeps people out."""
    found = Axe().run(tab, options=AXE).response["violations"]
    barriers = [
        (rule["id"], node["target"], node["failureSummary"])
        for rule in found
        for node in rule["nodes"]
    ]
    assert not barriers, barriers[:5]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("page", EVERY_PAGE)
def test_page_opens_cleanly_and_fits(visit, page, width, scheme):
    tab = visit(page, width, scheme)
    tab.wait_for_function("document.documentElement.dataset.theme")
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    assert tab.title()
    tab.evaluate(ARRIVE)
    typeset(tab)
    overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    assert not tab.evaluate(SQUASHED)
    assert tab.evaluate(WEIGHT) <= MOST_BYTES
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = f"{page.rsplit('/')[-1]}-{scheme}-{width}.png"
    tab.screenshot(path=SCREENSHOTS / name, full_page=True)
    # What is folded must be as good as what is not. It fades in: half-way its
    # contrast is low, so let it be there at once.
    tab.emulate_media(reduced_motion="reduce")
    tab.evaluate(
        "document.querySelectorAll('details').forEach(d => { d.open = true; })"
    )
    assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    check_barriers(tab)


def test_formulas_come_when_they_are_near(visit):
    tab = visit("ppo-in-numpy", 360)
    assert not tab.locator("mjx-container").count()
    tab.locator("article .math").first.scroll_into_view_if_needed()
    assert typeset(tab) > 20


# Videos

# A game, and the game with what the network sees and thinks.
SIZES = [[160, 210], [640, 448]]


@pytest.mark.parametrize("page", WITH_VIDEOS)
def test_videos_play_when_asked_to(visit, page):
    tab = visit(page, reduced_motion="reduce")
    videos = tab.locator("article video")
    assert videos.count()
    look = """video => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
        const context = canvas.getContext("2d");
        context.drawImage(video, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.width, canvas.height, data.reduce((a, b, i) => (a * 31 + b) % 1000003, 7)];
    }"""
    poster = """async video => {
        const image = new Image();
        image.src = video.poster;
        await image.decode();
        return [image.naturalWidth, image.naturalHeight];
    }"""
    fetched = []
    tab.on("request", lambda r: fetched.append(r.url) if ".mp4" in r.url else None)
    tab.wait_for_timeout(500)
    assert not tab.evaluate(
        "performance.getEntriesByType('resource')"
        ".filter(part => part.name.endsWith('.mp4')).length"
    )
    for number in range(videos.count()):
        video = videos.nth(number)
        assert video.evaluate(poster) in SIZES
        assert video.evaluate("v => v.controls && v.muted && v.paused")
        assert not fetched
        video.scroll_into_view_if_needed()
        video.focus()
        tab.keyboard.press("Space")
        clock = "n => document.querySelectorAll('article video')[n].currentTime"
        tab.wait_for_function(f"{clock} > 0.3", arg=number)
        first = video.evaluate(look)
        tab.wait_for_function(f"{clock} > 1.5", arg=number)
        second = video.evaluate(look)
        assert first[:2] == second[:2] and first[:2] in SIZES
        assert first[2] != second[2]
        assert video.evaluate("video => video.duration") > 20
        assert fetched
        video.evaluate("video => video.pause()")
        fetched.clear()


def test_first_page_moves_only_for_those_who_like_it(visit):
    playing = "[...document.querySelectorAll('video')].every(v => !v.paused)"
    tab = visit("index")
    video = tab.locator("video").first
    video.scroll_into_view_if_needed()
    tab.wait_for_function(playing)
    # The reader's own pause counts, also after scrolling.
    video.evaluate("video => video.pause()")
    tab.locator("a.right-next").scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelectorAll('video')[1].paused")
    video.scroll_into_view_if_needed()
    tab.wait_for_function("!document.querySelectorAll('video')[1].paused")
    assert video.evaluate("video => video.paused")
    tab = visit("index", reduced_motion="reduce")
    tab.locator("video").first.scroll_into_view_if_needed()
    tab.wait_for_timeout(1000)
    assert tab.evaluate(playing.replace("!v.paused", "v.paused"))


# Getting around


def test_next_and_previous_walk_the_book(visit):
    tab = visit(PAGES[0])
    walked = [tab.locator("article h1").inner_text()]
    while tab.locator("a.right-next").count():
        tab.locator("a.right-next").click()
        tab.wait_for_load_state()
        walked.append(tab.locator("article h1").inner_text())
    assert walked == list(TITLES.values())
    back = [tab.locator("article h1").inner_text()]
    while tab.locator("a.left-prev").count():
        tab.locator("a.left-prev").click()
        tab.wait_for_load_state()
        back.append(tab.locator("article h1").inner_text())
    assert back[::-1] == walked
    assert tab.url.endswith(f"{PAGES[0]}.html")


def test_search_finds_the_glossary(visit):
    tab = visit(PAGES[1])
    tab.keyboard.press("Control+k")
    tab.keyboard.type("advantage")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=advantage*")
    found = tab.locator("#search-results a", has_text="Glossary")
    found.first.wait_for()
    found.first.click()
    tab.wait_for_url("**/glossary.html*")


def test_keyboard_reaches_the_text(visit):
    tab = visit(PAGES[1])
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.url.endswith("#main-content")
    # The theme's switch: auto, light, dark.
    switch = tab.locator("button.theme-switch-button").first
    seen = set()
    for _ in range(3):
        switch.press("Enter")
        seen.add(tab.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


# The boxes whose content is wider or higher than they are; hidden ones have no size.
SCROLLING = """() => [...document.querySelectorAll(
    "article pre, article .cell_output > .output, article .pst-scrollable-table-container"
)].filter(box => /auto|scroll/.test(getComputedStyle(box).overflowX)
    && (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight))"""


@pytest.mark.parametrize("page", [*NOTEBOOKS])
def test_what_scrolls_can_be_reached_by_keyboard(visit, page):
    tab = visit(page, 360)
    unreachable = f"({SCROLLING})().filter(box => box.tabIndex < 0).length"
    tab.wait_for_function(f"({SCROLLING})().length && !{unreachable}", polling=200)
    # What was folded, too.
    tab.evaluate(
        "document.querySelectorAll('details').forEach(d => { d.open = true; })"
    )
    tab.wait_for_function(f"!{unreachable}", polling=200)
    number = f"({SCROLLING})().indexOf(document.activeElement)"
    tab.locator("article a").first.focus()
    for _ in range(100):
        tab.keyboard.press("Tab")
        if tab.evaluate(number) >= 0:
            break
    assert tab.evaluate(number) >= 0
    before = tab.evaluate("document.activeElement.scrollLeft")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function(f"document.activeElement.scrollLeft > {before}")


def test_menu_opens_on_a_phone(visit):
    tab = visit(PAGES[1], 360)
    link = tab.locator("a", has_text=TITLES[PAGES[2]]).first
    assert not link.is_visible()
    tab.locator("button.primary-toggle").first.press("Enter")
    link = tab.locator("dialog a", has_text=TITLES[PAGES[2]]).first
    link.wait_for()
    link.press("Enter")
    tab.wait_for_url(f"**/{PAGES[2]}.html")


def test_old_address_of_a_section_leads_to_it(visit):
    tab = visit("content/train-to-win", section="#the-ladder")
    tab.wait_for_url("**/what-helped.html#take-one-thing-away")


def test_missing_page_says_so_and_leads_back(browser, site):
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    answers = {}
    tab.on("response", lambda r: answers.update({r.url: r.status}))
    address = f"{site}no/such/page.html"
    tab.goto(address)
    assert answers.pop(address) == 404
    assert set(answers.values()) == {200}
    assert "Page not found" in tab.locator("article h1").inner_text()
    tab.locator("nav.bd-links a", has_text=TITLES[PAGES[2]]).first.click()
    tab.wait_for_url(f"{site}{PAGES[2]}.html")
    tab.close()


@pytest.mark.parametrize("prefix", ["/", PREFIX])
def test_book_works_from_any_folder(browser, book, prefix):
    """Its address shows the first page, and all that it needs is relative."""
    with serve(book.html, prefix) as address:
        tab = browser.new_page()
        tab.set_default_timeout(PATIENCE)
        answers = {}
        tab.on("response", lambda r: answers.update({r.url: r.status}))
        tab.goto(address)
        # They play when they are in view: below the game.
        tab.locator("video").first.scroll_into_view_if_needed()
        tab.wait_for_function(
            "[...document.querySelectorAll('video')].every(v => !v.paused)"
        )
        # The style sheet is there, and its rules apply.
        style = "getComputedStyle(document.querySelector('.hero')).display"
        assert tab.evaluate(style) == "grid"
        tab.locator("a.right-next").click()
        tab.wait_for_url(f"{address}{PAGES[1]}.html")
        tab.wait_for_load_state("networkidle")
        assert all(url.startswith(address) for url in answers)
        assert set(answers.values()) <= {200, 206}
        tab.close()


# Code


def test_copy_button_copies_the_code(visit, site):
    tab = visit(PAGES[1], permissions=["clipboard-read", "clipboard-write"])
    cells = tab.locator("div.cell_input:visible")
    for number in (0, 1):
        cell = cells.nth(number)
        cell.scroll_into_view_if_needed()
        cell.hover()
        cell.locator("button.copybtn").press("Enter")
        code = cell.locator("pre").text_content()
        tab.wait_for_function(
            "async code => (await navigator.clipboard.readText()).trim() === code",
            arg=code.strip(),
        )
        assert re.search(r"\w", code)


def test_solutions_unfold(visit):
    tab = visit("pong-from-pixels")
    solutions = tab.locator("article details.hide.above-input, article details.hide")
    assert solutions.count() >= 3
    solution = solutions.last
    code = solution.locator(".cell_input, pre").first
    assert not code.is_visible()
    solution.locator("summary").press("Enter")
    assert code.is_visible()
