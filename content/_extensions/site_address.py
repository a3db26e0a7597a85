"""Sphinx extension: derive the site's address from that of the repository.

`repository.url` in _config.yml is the one setting. GitHub Pages serves the
book of `https://github.com/owner/name` at `https://owner.github.io/name/`.
Canonical links, Open Graph tags, the sitemap and the page for missing
addresses need that; every other link is relative. `html.baseurl` in
_config.yml overrules it.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

# The addresses in a page: attributes of its elements.
ADDRESS = re.compile(
    r'(\s(?:href|src|poster|action|data-content_root)=")([^"]*)(")'
)


def pages_address(repository):
    """Return where GitHub Pages serves a repository.

    Parameters
    ----------
    repository : str
        Such as https://github.com/owner/name.

    Returns
    -------
    str
        With a slash at the end.
    """
    owner, name = urlsplit(repository).path.strip("/").split("/")
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" + ("" if name.lower() == host else f"{name}/")


def set_address(app, config):
    """Tell the extensions that need an address."""
    repository = config.html_theme_options["repository_url"]
    base = config.html_baseurl or pages_address(repository)
    config.html_baseurl = config.ogp_site_url = base
    config.notfound_urls_prefix = urlsplit(base).path


def moved(page, folder):
    """Return a page with its relative addresses as seen from the folder above.

    Parameters
    ----------
    page : str
        HTML.
    folder : str
        Where it is now.

    Returns
    -------
    str
    """

    def move(match):
        before, address, after = match.groups()
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not parts.path:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, parts.path))
        if parts.path.endswith("/"):
            path += "/"
        return before + parts._replace(path=path).geturl() + after

    return ADDRESS.sub(move, page)


def write_front_door(app, exception):
    """Write the first page also as index.html, where shared links lead.

    Without it Jupyter Book writes a redirection: one more round trip, and
    nothing to show to those who share the link.
    """
    if exception or app.builder.name != "html":
        return
    folder, name = posixpath.split(app.config.root_doc)
    page = Path(app.outdir, folder, f"{name}.html")
    text = moved(page.read_text(encoding="utf-8"), folder)
    Path(app.outdir, "index.html").write_text(text, encoding="utf-8")


def write_sitemap(app, exception):
    """Tell search engines which pages there are.

    All of them: sphinx-sitemap lists those that this build has written.
    """
    if exception or app.builder.name != "html":
        return
    urls = ElementTree.Element(
        "urlset", xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"
    )
    for name in sorted(app.env.found_docs):
        location = ElementTree.SubElement(
            ElementTree.SubElement(urls, "url"), "loc"
        )
        location.text = app.config.html_baseurl + app.builder.get_target_uri(
            name
        )
    ElementTree.ElementTree(urls).write(
        Path(app.outdir, "sitemap.xml"), "utf-8", xml_declaration=True
    )


def setup(app):
    """Before the other extensions read the address, and after all pages."""
    app.connect("config-inited", set_address, priority=100)
    app.connect("build-finished", write_front_door, priority=100)
    app.connect("build-finished", write_sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
