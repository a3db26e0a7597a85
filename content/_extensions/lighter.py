"""Sphinx extension: pages come sooner, and screen readers understand them.

Pictures say how much room they need and wait until the reader is near. Notebooks
get launch buttons, and shared links a description. The rest is in layout.html
(scripts wait until the page is there), book.js (formulas and icons come later),
and book.css.
"""

import re
from pathlib import Path
from urllib.parse import unquote

from docutils import nodes
from PIL import Image

PICTURE = re.compile(r'<img (?![^>]*\sheight=)[^>]*?src="([^"]*)"[^>]*>')


def describe(app, pagename, templatename, context, doctree):
    """Shared links say what search engines say: the page's `html_meta`."""
    for meta in doctree.findall(nodes.meta) if doctree else ():
        if meta.get("name") == "description":
            about = {"og:description": meta["content"]}
            context["meta"] = {**(context["meta"] or {}), **about}


def launch(app, pagename, templatename, context, doctree):
    """Give the theme, which then adds launch buttons, a sign of a notebook."""
    page = app.env.metadata.get(pagename, {})
    if "jupytext" in page:
        page.setdefault("kernelspec", {})


def mend(app, pagename, templatename, context, doctree):
    """Change the text of a page, which is complete but for its frame."""
    body = context.get("body", "")
    sources = {name: path for path, name in app.builder.images.items()}

    def measured(match):
        path = sources.get(unquote(match[1]).rpartition("/")[2])
        if path is None or path.endswith(".svg"):
            return match[0]
        with Image.open(Path(app.srcdir) / path) as picture:
            size = 'width="{}" height="{}"'.format(*picture.size)
        lazy = 'loading="lazy" ' if match.start() != first else ""
        return match[0].replace("<img ", f"<img {lazy}{size} ", 1)

    first = getattr(PICTURE.search(body), "start", int)()
    if body:
        body = PICTURE.sub(measured, body)
        # ARIA has withdrawn this role, and the list would have no items.
        body = body.replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = body


def setup(app):
    """Before sphinxext-opengraph, and after all others have added their files."""
    app.connect("html-page-context", describe, priority=100)
    app.connect("html-page-context", launch, priority=100)
    app.connect("html-page-context", mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
