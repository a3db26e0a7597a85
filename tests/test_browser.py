"""The pages in a real browser: light and dark, on a desktop and on a phone."""

import os

import pytest

from conftest import ROOT
from pages import check_barriers, serve, tabs
from test_book import NOTEBOOKS, PAGES, TITLES, WITH_VIDEOS

MOST_BYTES = 1_750_000  # of a page, unpacked, with all that belongs to it
# A page is opened as the first of these; the others follow from it.
VIEWS = [(360, "dark"), (360, "light"), (1280, "light"), (1280, "dark")]

# The pictures whose height does not fit their width.
SQUASHED = """[...document.querySelectorAll("article img")].filter(image => {
    const natural = image.naturalWidth / image.naturalHeight;
    return Math.abs(image.width / image.height / natural - 1) > 0.05;
}).map(image => image.alt)"""

# Unfold what is folded, fetch what waits until the reader is near, lay it out, and
# wait until it is there.
ARRIVE = """async () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
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

# The boxes whose content is wider or higher than they are.
SCROLLING = """[...document.querySelectorAll(
    "article pre, article .cell_output > .output, article .pst-scrollable-table-container"
)].filter(box => /auto|scroll/.test(getComputedStyle(box).overflowX)
    && (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight))"""


@pytest.fixture(scope="module")
def site(book, config):
    """Serve the book on this computer, and return its address."""
    name = config["repository"]["url"].rsplit("/", 1)[-1]
    with serve(book.html, f"/{name}/") as address:  # as on GitHub Pages
        yield address


@pytest.fixture
def visit(browser, site):
    """Return a function that opens a page of the book."""
    with tabs(browser, site) as open_tab:
        yield lambda page, *args, **options: open_tab(f"{page}.html", *args, **options)


def typeset(tab):
    """Wait until every formula is set."""
    formulas = tab.locator("article .math").count()
    done = "n => document.querySelectorAll('article .math mjx-container').length >= n"
    # To look more often would slow down what it waits for.
    tab.wait_for_function(done, arg=formulas, polling=200)
    assert not tab.locator("mjx-merror").count()
    return formulas


@pytest.mark.parametrize("page", [*PAGES, "search", "404"])
def test_page_opens_cleanly_and_fits(visit, page):
    """To look at the pages, set SCREENSHOTS."""
    width, scheme = VIEWS[0]
    # What fades in has a low contrast half-way: let it be there at once.
    tab = visit(page, width, color_scheme=scheme, reduced_motion="reduce")
    tab.evaluate(ARRIVE)
    typeset(tab)
    assert tab.evaluate(WEIGHT) <= MOST_BYTES
    for width, scheme in VIEWS:
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        theme = "document.documentElement.dataset.theme"
        tab.wait_for_function(f"{theme} === '{scheme}'")
        # The keyboard reaches what scrolls.
        reached = f"{SCROLLING}.every(box => box.tabIndex >= 0)"
        tab.wait_for_function(reached, polling=200)
        scroll = "document.documentElement.scrollWidth - window.innerWidth"
        assert tab.evaluate(scroll) <= 0
        assert not tab.evaluate(SQUASHED)
        # That takes long: each width and each scheme once, and all four on one page.
        if page == "index" or (width > 400) == (scheme == "light"):
            check_barriers(tab)
        if "SCREENSHOTS" in os.environ:
            path = ROOT / f"_build/screenshots/{page}-{scheme}-{width}.png"
            tab.screenshot(path=path, full_page=True)


def test_formulas_come_when_they_are_near(visit):
    tab = visit("ppo-in-numpy", 360)
    assert not tab.locator("mjx-container").count()
    tab.locator("article .math").first.scroll_into_view_if_needed()
    assert typeset(tab) > 20


# Videos

# A game, and the game with what the network sees and thinks.
SIZES = [[160, 210], [640, 448]]

# The size of a video's picture, and a number that changes with its pixels.
LOOK = """video => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.width, canvas.height, data.reduce((a, b, i) => (a * 31 + b) % 1000003, 7)];
}"""


@pytest.mark.parametrize("page", WITH_VIDEOS)
def test_videos_play_when_asked_to(visit, page):
    fetched = set()

    def watch(tab):
        tab.on("request", lambda r: r.url.endswith(".mp4") and fetched.add(r.url))

    tab = visit(page, before=watch, reduced_motion="reduce")
    tab.wait_for_timeout(500)
    videos = tab.locator("article video").all()
    for number, video in enumerate(videos):
        assert video.evaluate("v => v.controls && v.muted && v.paused")
        assert len(fetched) == number
        video.scroll_into_view_if_needed()
        video.focus()
        tab.keyboard.press("Space")
        clock = "n => document.querySelectorAll('article video')[n].currentTime"
        looks = []
        for more in (0.3, 1.2):
            seconds = tab.evaluate(clock, number) + more
            tab.wait_for_function(f"{clock} > {seconds}", arg=number)
            looks.append(video.evaluate(LOOK))
        assert looks[0][:2] == looks[1][:2] in SIZES
        assert looks[0][2] != looks[1][2]
        assert video.evaluate("video => video.duration") > 20
        video.evaluate("video => video.pause()")
    assert videos


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


def test_search_finds_the_glossary(visit):
    tab = visit(PAGES[1])
    tab.keyboard.press("Control+k")
    tab.keyboard.type("advantage")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=advantage*")
    tab.locator("#search-results a", has_text="Glossary").first.click()
    tab.wait_for_url("**/glossary.html*")


def test_keyboard_reaches_the_text(visit):
    tab = visit(PAGES[1])
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**#main-content")
    # The theme's switch: auto, light, dark.
    switch = tab.locator("button.theme-switch-button").first
    seen = set()
    for _ in range(3):
        switch.press("Enter")
        seen.add(tab.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


def test_what_scrolls_scrolls_by_keyboard(visit):
    """That it has the focus where it should, each page's test says."""
    tab = visit(NOTEBOOKS[0], 360)
    tab.wait_for_function(f"{SCROLLING}.some(box => box.tabIndex >= 0)", polling=200)
    tab.locator("article a").first.focus()
    reached = f"{SCROLLING}.includes(document.activeElement)"
    for _ in range(100):
        tab.keyboard.press("Tab")
        if tab.evaluate(reached):
            break
    assert tab.evaluate(reached)
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.activeElement.scrollLeft > 0")


def test_menu_opens_on_a_phone(visit):
    tab = visit(PAGES[1], 360)
    link = tab.locator("a", has_text=TITLES[PAGES[2]]).first
    assert not link.is_visible()
    tab.locator("button.primary-toggle").first.press("Enter")
    tab.locator("dialog a", has_text=TITLES[PAGES[2]]).first.press("Enter")
    tab.wait_for_url(f"**/{PAGES[2]}.html")


def test_old_address_of_a_section_leads_to_it(visit, site):
    tab = visit(PAGES[1])
    tab.goto(f"{site}content/train-to-win.html#the-ladder")
    tab.wait_for_url("**/what-helped.html#take-one-thing-away")


def test_missing_page_says_so_and_leads_back(visit):
    tab = visit("no/such/page")
    (problem,) = tab.problems  # the page itself; what belongs to it is there
    assert "404" in problem
    tab.problems.clear()
    assert tab.locator("article h1", has_text="Page not found").is_visible()
    tab.locator("nav.bd-links a", has_text=TITLES[PAGES[2]]).first.click()
    tab.wait_for_url(f"**/{PAGES[2]}.html")


def test_book_works_without_a_sub_path(browser, book):
    """Its address shows the first page, and all that it needs is relative."""
    with serve(book.html) as site, tabs(browser, site) as open_tab:
        tab = open_tab("")
        # The style sheet is there, and its rules apply.
        style = "getComputedStyle(document.querySelector('.hero')).display"
        assert tab.evaluate(style) == "grid"
        tab.locator("a.right-next").click()
        tab.wait_for_url(f"{site}{PAGES[1]}.html")
        tab.wait_for_load_state("networkidle")


# Code


def test_copy_button_copies_the_code(visit):
    tab = visit(PAGES[1], permissions=["clipboard-read", "clipboard-write"])
    cells = tab.locator("div.cell_input:visible").all()[:2]
    assert len(cells) == 2
    for cell in cells:
        cell.scroll_into_view_if_needed()
        cell.hover()
        cell.locator("button.copybtn").press("Enter")
        code = cell.locator("pre").text_content().strip()
        same = "async code => (await navigator.clipboard.readText()).trim() === code"
        tab.wait_for_function(same, arg=code)
        assert code
