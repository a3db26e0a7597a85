"""Sphinx extension: what search engines and shared links say about a page.

The texts are the setting `page_descriptions` in _config.yml. Without them it
would be the first words of a page, which greet a reader who is there already.
"""

from html import escape

from sphinx.util import logging

logger = logging.getLogger(__name__)


def describe(app, pagename, templatename, context, doctree):
    """Add the description, before sphinxext-opengraph looks for one."""
    if doctree is None:
        return  # a page that is not written by hand, such as the search
    text = app.config.page_descriptions.get(pagename)
    if text is None:
        logger.warning("_config.yml has no description of %s", pagename)
        return
    context["meta"] = {**(context["meta"] or {}), "og:description": text}
    context["metatags"] += (
        f'\n<meta name="description" content="{escape(text)}" />'
    )


def setup(app):
    """When a page is complete but for its frame."""
    app.add_config_value("page_descriptions", {}, "html", dict)
    app.connect("html-page-context", describe, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
