"""Sphinx extension: execute some pages at a time, as many as BOOK_JOBS says.

Sphinx can read pages in several processes, but jupyter-book has no option for it.
"""

import os

from jupyter_cache import get_cache
from sqlalchemy import Engine, event


def prepare(app, env, docnames):
    """Before the pages are read."""
    app.parallel = int(os.environ.get("BOOK_JOBS", "1"))
    # Three extensions don't say whether they may be used so: one numbers chapters, of
    # which this book has no numbers; one is for LaTeX; one copies files in the end.
    for extension in app.extensions.values():
        extension.parallel_read_safe = (
            extension.parallel_read_safe is not False
        )
    # Who writes to the cache waits for the other, also where the disk is slow.
    wait = "PRAGMA busy_timeout = 600000"  # milliseconds
    event.listen(Engine, "connect", lambda found, _: found.execute(wait))
    # Make the cache's database now, and not in two processes at once.
    get_cache(env.mystnb_config.execution_cache_path).db  # noqa: B018


def finish(app, env):
    """Before the pages are written: that is quick."""
    app.parallel = 1


def setup(app):
    """Before and after the pages are read."""
    app.connect("env-before-read-docs", prepare)
    app.connect("env-updated", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
