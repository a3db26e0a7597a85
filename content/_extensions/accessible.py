"""Sphinx extension: roles that screen readers understand.

Docutils gives the entries of a bibliography a role that ARIA has withdrawn,
and the list that holds them then has no items.
"""


def mend_roles(app, pagename, templatename, context, doctree):
    """Make list items of the entries of a bibliography."""
    if "body" in context:
        context["body"] = context["body"].replace(
            'role="doc-biblioentry"', 'role="listitem"'
        )


def setup(app):
    """When a page is complete but for its frame."""
    app.connect("html-page-context", mend_roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
