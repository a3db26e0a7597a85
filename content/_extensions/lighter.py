"""Sphinx extension: pages load what they use, and nothing they do not.

Scripts wait until the page is there. MathJax comes with the pages that have
formulas, and only those of its files that such a page can ask for are kept.
Of the theme's 2,000 icons, those that are used remain.
"""

import logging
import re
from io import BytesIO
from pathlib import Path

import pydata_sphinx_theme
from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont

THEME = (
    Path(pydata_sphinx_theme.__file__).parent
    / "theme/pydata_sphinx_theme/static"
)
# What stays of MathJax: the program, its fonts, what TeX commands can load
# later, and what its menu offers to readers who cannot see the formulas.
MATHJAX = ("tex-chtml.js", "output/chtml", "input/tex", "a11y", "ui", "sre")
SPOKEN = ("base", "en", "nemeth")  # of the languages it speaks

logging.getLogger("fontTools").setLevel(logging.WARNING)

ICON_RULE = re.compile(r'\.fa-[^{}]*\{content:"([^"]*)"\}')
ICON_CLASS = re.compile(r"\bfa-[a-z0-9-]+")
FONT_FILE = re.compile(
    r'url\(([^()]*?)([\w-]+)\.woff2\) format\("woff2"\),url\([^()]*\) '
    r'format\("truetype"\)'
)


def load_less(app, pagename, templatename, context, doctree):
    """Let scripts wait, and leave MathJax out where there is no formula."""
    formulas = doctree is not None and any(
        next(doctree.findall(kind), None) is not None
        for kind in (nodes.math, nodes.math_block)
    )
    scripts = []
    for script in context["script_files"]:
        name = str(getattr(script, "filename", None) or "")
        if not formulas and (
            "mathjax" in name or "MathJax" in script.attributes.get("body", "")
        ):
            continue
        # The search page calls doctools.js at once.
        if name and templatename != "search.html":
            if not name.endswith("documentation_options.js"):
                script.attributes["defer"] = "defer"
        scripts.append(script)
    context["script_files"] = scripts


def characters(css):
    """Return the icons that a style sheet draws by itself, as characters.

    Parameters
    ----------
    css : str

    Returns
    -------
    set of str
    """
    escaped = re.findall(r'"\\([0-9a-f]{4})\s?"', css)
    drawn = set(css) | {chr(int(code, 16)) for code in escaped}
    return {c for c in drawn if "\ue000" <= c <= "\uf8ff"}


def shrink_icons(folder):
    """Keep the icons that pages, scripts and style sheets use.

    Parameters
    ----------
    folder : pathlib.Path
        The built book.
    """
    used = set()
    for path in [*folder.glob("**/*.html"), *folder.glob("_static/**/*.js")]:
        if "mathjax" not in path.parts and path.name != "fontawesome.js":
            used |= set(ICON_CLASS.findall(path.read_text(encoding="utf-8")))
    kept = set()

    def keep(rule):
        if used.isdisjoint(ICON_CLASS.findall(rule[0])):
            return ""
        kept.update(characters(rule[0]))
        return rule[0]

    name = "styles/pydata-sphinx-theme.css"
    css = (THEME / name).read_text(encoding="utf-8")
    kept |= characters(ICON_RULE.sub("", css))
    css = ICON_RULE.sub(keep, css)
    css = FONT_FILE.sub(r'url(\1\2.woff) format("woff")', css)
    css = re.sub(r"/\*# sourceMappingURL=.*?\*/", "", css)
    static = folder / "_static"
    for other in static.glob("**/*.css"):
        if other != static / name:
            kept |= characters(other.read_text(encoding="utf-8"))
    (static / name).write_text(css, encoding="utf-8")
    fonts = static / "vendor/fontawesome/webfonts"
    for path in fonts.iterdir():
        path.unlink()
    for path in (THEME / "vendor/fontawesome/webfonts").glob("*.woff2"):
        font = TTFont(BytesIO(path.with_suffix(".ttf").read_bytes()))
        options = subset.Options(flavor="woff", notdef_outline=True)
        subsetter = subset.Subsetter(options)
        subsetter.populate(text="".join(kept))
        subsetter.subset(font)
        target = fonts / f"{path.stem}.woff"
        subset.save_font(font, str(target), options)
    (static / "scripts/fontawesome.js").unlink(missing_ok=True)
    for path in static.glob("**/*.map"):
        path.unlink()


def shrink_mathjax(folder):
    """Keep what a page can ask for.

    Parameters
    ----------
    folder : pathlib.Path
        MathJax in the built book.
    """
    for path in folder.glob("**/*"):
        name = path.relative_to(folder).as_posix()
        wanted = name.startswith(MATHJAX) or any(
            wish.startswith(name + "/") for wish in MATHJAX
        )
        if path.parent.name == "mathmaps":
            wanted = path.stem in SPOKEN
        if not wanted and path.is_file():
            path.unlink()


def shrink(app, exception):
    """Remove what no page uses, after all is written."""
    if exception is None and app.builder.name == "html":
        folder = Path(app.outdir)
        shrink_icons(folder)
        shrink_mathjax(folder / "_static" / "mathjax")


def setup(app):
    """After the other extensions have added their files."""
    app.connect("html-page-context", load_less, priority=900)
    app.connect("build-finished", shrink, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
