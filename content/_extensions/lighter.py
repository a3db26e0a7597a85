"""Sphinx extension: pages load what they use, and nothing they do not.

Style sheets and scripts come with the pages that need them, and scripts wait
until the page is there. Pictures wait until the reader is near. Of MathJax
those files are kept that a page can ask for, and of the theme's 2,000 icons
those that are used.
"""

import logging
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import pydata_sphinx_theme
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image

THEME = (
    Path(pydata_sphinx_theme.__file__).parent
    / "theme/pydata_sphinx_theme/static"
)
# What stays of MathJax: the program, its fonts, what TeX commands can load
# later, and what its menu offers to readers who cannot see the formulas.
MATHJAX = ("tex-chtml.js", "output/chtml", "input/tex", "a11y", "ui", "sre")
SPOKEN = ("base", "en", "nemeth")  # of the languages it speaks

logging.getLogger("fontTools").setLevel(logging.WARNING)

# Style sheets and scripts, and how to tell that a page needs them.
SIGNS = {
    "copybutton": "highlight",
    "clipboard": "highlight",
    "mystnb": 'class="cell',
    "sphinx-design": "sd-",
    "design-tabs": "sd-tab",
}
ICON_RULE = re.compile(r'\.fa-[^{}]*\{content:"([^"]*)"\}')
ICON_CLASS = re.compile(r"\bfa-[a-z0-9-]+")
FONT_FILE = re.compile(
    r'url\(([^()]*?)([\w-]+)\.woff2\) format\("woff2"\),url\([^()]*\) '
    r'format\("truetype"\)'
)


def load_less(app, pagename, templatename, context, doctree):
    """Let scripts wait, and leave out what the page has no use for."""
    body = context.get("body", "")

    def wanted(asset):
        name = str(getattr(asset, "filename", None) or "")
        return all(
            sign in body for part, sign in SIGNS.items() if part in name
        )

    context["css_files"] = [c for c in context["css_files"] if wanted(c)]
    scripts = []
    for script in filter(wanted, context["script_files"]):
        name = str(getattr(script, "filename", None) or "")
        if "mathjax" in name:
            continue  # book.js loads it when a formula comes near
        # The search page calls doctools.js at once.
        if name and templatename != "search.html":
            if not name.endswith("documentation_options.js"):
                # A script object is shared by all pages.
                script = type(script)(
                    script.filename,
                    priority=script.priority,
                    **{**script.attributes, "defer": "defer"},
                )
        scripts.append(script)
    context["script_files"] = scripts
    if body:
        context["body"] = measured(body, app, pagename)


def measured(body, app, pagename):
    """Return a page whose pictures say how much room they need.

    So nothing moves when they arrive. All but the first are fetched when the
    reader comes near.

    Parameters
    ----------
    body : str
        HTML.
    app : sphinx.application.Sphinx
    pagename : str

    Returns
    -------
    str
    """
    sources = {name: path for path, name in app.builder.images.items()}
    count = 0

    def measure(match):
        nonlocal count
        path = sources.get(unquote(match[1]).rsplit("/", 1)[-1])
        if path is None or path.endswith(".svg") or " height=" in match[0]:
            return match[0]
        with Image.open(Path(app.srcdir) / path) as picture:
            width, height = picture.size
        count += 1
        lazy = 'loading="lazy" ' if count > 1 else ""
        return match[0].replace(
            "<img ", f'<img {lazy}width="{width}" height="{height}" ', 1
        )

    return re.sub(r'<img [^>]*?src="([^"]*)"[^>]*>', measure, body)


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
