"""Sphinx extension: derive the site's address from that of the repository.

`repository.url` in _config.yml is the one setting. GitHub Pages serves the
book of https://github.com/owner/name at https://owner.github.io/name/.
"""

from urllib.parse import urlsplit


def set_address(app, config):
    """Tell Sphinx, and the extensions that need an address."""
    repository = urlsplit(config.html_theme_options["repository_url"])
    owner, name = repository.path.strip("/").split("/")
    config.html_baseurl = f"https://{owner.lower()}.github.io/{name}/"
    config.ogp_site_url = config.html_baseurl
    config.notfound_urls_prefix = f"/{name}/"


def setup(app):
    """Before the other extensions read the address."""
    app.connect("config-inited", set_address, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
