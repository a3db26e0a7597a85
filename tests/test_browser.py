"""The pages in a real browser: light and dark, on a desktop and on a phone."""

import functools
import http.server
import os
import shutil
import threading

import pytest
from conftest import ROOT
from playwright.sync_api import sync_playwright
from test_book import PAGES

SCREENSHOTS = ROOT / "_build" / "screenshots"
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]

# The pictures whose height does not fit their width; their padding does not count.
SQUASHED = """() => [...document.querySelectorAll("article img")].filter(image => {
    const style = getComputedStyle(image);
    const width = image.clientWidth - 2 * parseFloat(style.paddingLeft);
    const height = image.clientHeight - 2 * parseFloat(style.paddingTop);
    const shape = width / height;
    const natural = image.naturalWidth / image.naturalHeight;
    return Math.abs(shape / natural - 1) > 0.05;
}).map(image => image.alt)"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(book):
    """Serve the book on this computer, and return its address."""
    handler = functools.partial(Handler, directory=str(book.html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    """Start Debian's Chromium, or else the Chrome that is installed."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        choice = {"executable_path": path} if path else {"channel": "chrome"}
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        # Chromium's sandbox does not work for root.
        arguments = ARGUMENTS + ["--no-sandbox"] * root
        browser = playwright.chromium.launch(args=arguments, **choice)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, site):
    """Return a function that opens a page, and fails on errors and requests."""
    contexts, problems = [], []

    def open_page(page, width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on(
            "console",
            lambda m: problems.append(m.text) if m.type == "error" else None,
        )
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("requestfailed", lambda r: problems.append(f"failed: {r.url}"))
        tab.on(
            "request",
            lambda r: (
                None
                if r.url.startswith((site, "data:", "blob:"))
                else problems.append(f"foreign: {r.url}")
            ),
        )
        tab.goto(f"{site}/{page}.html", wait_until="load")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("page", PAGES)
def test_page_opens_cleanly_and_fits(visit, page, width, scheme):
    tab = visit(page, width, scheme)
    tab.wait_for_function("document.documentElement.dataset.theme")
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    overflow = tab.evaluate(
        "document.documentElement.scrollWidth - window.innerWidth"
    )
    assert overflow <= 0
    broken = tab.evaluate(
        "[...document.images].filter(i => i.loading !== 'lazy' && "
        "!(i.complete && i.naturalWidth)).map(i => i.src)"
    )
    assert not broken
    squashed = tab.evaluate(SQUASHED)
    assert not squashed
    formulas = tab.locator("article .math").count()
    tab.wait_for_function(
        "n => document.querySelectorAll('article mjx-container').length >= n",
        arg=formulas,
    )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = f"{page.rsplit('/')[-1]}-{scheme}-{width}.png"
    tab.screenshot(path=SCREENSHOTS / name, full_page=True)


@pytest.mark.parametrize(
    ("page", "number", "size"),
    [
        ("content/pong-from-pixels", 0, [160, 210]),
        ("content/train-to-win", 0, [160, 210]),
        ("content/train-to-win", 1, [160, 210]),
        ("content/inside-the-agent", 0, [640, 448]),
        ("content/video-playback", 0, [160, 210]),
    ],
)
def test_video_plays(visit, page, number, size):
    tab = visit(page)
    video = tab.locator("video").nth(number)
    video.scroll_into_view_if_needed()
    look = """video => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
        const context = canvas.getContext("2d");
        context.drawImage(video, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.width, canvas.height, data.reduce((a, b, i) => (a * 31 + b) % 1000003, 7)];
    }"""
    video.evaluate("video => { video.currentTime = 5; return video.play(); }")
    clock = "n => document.querySelectorAll('video')[n].currentTime"
    tab.wait_for_function(f"{clock} > 5.3", arg=number)
    first = video.evaluate(look)
    tab.wait_for_function(f"{clock} > 6.5", arg=number)
    second = video.evaluate(look)
    assert first[:2] == second[:2] == size
    assert first[2] != second[2]
    assert video.evaluate("video => video.duration") > 20


def test_solutions_unfold(visit):
    tab = visit("content/pong-from-pixels")
    solutions = tab.locator("details.hide", has_text="solution of exercise")
    assert solutions.count() >= 5
    for number in range(solutions.count()):
        solution = solutions.nth(number)
        code = solution.locator(".cell_input, pre").first
        assert not code.is_visible()
        solution.locator("summary").press("Enter")
        assert code.is_visible()
        assert solution.locator(".cell_output").inner_text().strip()
