"""Serves pages as GitHub Pages does, and opens them in a browser."""

import asyncio
import re
import threading
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, StaticFileHandler

# How long to wait for what must come, in milliseconds. Nothing here measures speed
# (scripts/lighthouse.py does), and a computer that others use too may be very slow.
PATIENCE = 300_000
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]

# Mark the code and the formulas whose colors all come in a part before: most of axe's
# time goes into their thousands of words.
MARK_REPEATED_COLORS = """() => {
    const seen = new Set();
    for (const part of document.querySelectorAll("div.highlight pre, mjx-container")) {
        const back = getComputedStyle(part).backgroundColor;
        const colors = [part, ...part.querySelectorAll("span")].map(
            word => getComputedStyle(word).color + back);
        part.toggleAttribute("data-repeated", colors.every(color => seen.has(color)));
        for (const color of colors) seen.add(color);
    }
}"""


class Pages(StaticFileHandler):
    """Answers with files, or parts of them; or else with 404.html."""

    def set_extra_headers(self, path):
        self.set_header("Cache-Control", "max-age=600")

    def write_error(self, status_code, **reason):
        self.finish((Path(self.root) / "404.html").read_bytes())


@contextmanager
def serve(folder, prefix="/"):  # the sub-path, with slashes around it
    """Serve a folder on this computer, and yield its address."""
    options = {"path": str(folder), "default_filename": "index.html"}
    rule = (f"{re.escape(prefix)}(.*)", Pages, options)
    server = HTTPServer(Application([rule], compress_response=True))
    (socket,) = bind_sockets(0, "127.0.0.1")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    loop.call_soon_threadsafe(server.add_socket, socket)
    yield f"http://127.0.0.1:{socket.getsockname()[1]}{prefix}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    socket.close()


@contextmanager
def tabs(browser, site):
    """Yield a function that opens pages of a site.

    In the end, fail on errors, also of what is missing, and on requests to others.
    """
    contexts, problems = [], []
    ours = (site, "data:", "blob:")

    def open_tab(page, width=1280, before=None, **options):
        size = {"viewport": {"width": width, "height": 900}}
        context = browser.new_context(**(size | options))
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        tab = context.new_page()
        tab.problems = problems
        tab.on("console", lambda m: m.type == "error" and problems.append(m.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda r: r.url.startswith(ours) or problems.append(r.url))
        if before:
            before(tab)
        tab.goto(site + page)
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert not problems


def check_barriers(tab, *more):
    """Fail if axe finds something that keeps people out."""
    # `preload` would ask for style sheets where there are none.
    options = {"runOnly": [*RULES, *more], "preload": False}
    tab.evaluate(MARK_REPEATED_COLORS)
    some = {"exclude": [["[data-repeated]"]]}
    results = Axe().run(tab, context=some, options=options)
    assert not results.violations_count, results.generate_report()
