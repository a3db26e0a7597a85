"""Sphinx extension: pages load what they use, and nothing they do not.

The rules that a page can need, a tenth of what the style sheets hold, become
one style sheet for all pages. Scripts come with the pages that need them, and
wait until the page is there. Pictures wait until the reader is near. Of
MathJax those files are kept that a page can ask for, and of the theme's 2,000
icons those that are used.
"""

import logging as standard_logging
import posixpath
import re
from io import BytesIO
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pydata_sphinx_theme
import tinycss2
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.util import logging

THEME = (
    Path(pydata_sphinx_theme.__file__).parent
    / "theme/pydata_sphinx_theme/static"
)
# What stays of MathJax: the program, its fonts, what TeX commands can load
# later, and what its menu offers to readers who cannot see the formulas.
MATHJAX = ("tex-chtml.js", "output/chtml", "input/tex", "a11y", "ui", "sre")
SPOKEN = ("base", "en", "nemeth")  # of the languages it speaks

logger = logging.getLogger(__name__)
standard_logging.getLogger("fontTools").setLevel(standard_logging.WARNING)

# Scripts, and how to tell that a page needs them.
SIGNS = {
    "copybutton": "<pre",
    "clipboard": "<pre",
    "design-tabs": "sd-tab",
}
# The style sheets, in the order in which their rules count.
STYLES = (
    "styles/theme.css",
    "styles/pydata-sphinx-theme.css",
    "pygments.css",
    "styles/sphinx-book-theme.css",
    "copybutton.css",
    "mystnb.*.css",
    "sphinx-design.min.css",
    "book.css",
)
STYLE = "styles/all.css"  # layout.html links it
# Names, punctuation and white space have the color of the text around them:
# half of the elements of a page with code would only say so.
PLAIN_CODE = re.compile(r'<span class="(?:n|p|w|nn)">([^<]*)</span>')
# How the theme finds out which boxes scroll: by measuring all of them at once,
# which takes a second on a phone. book.js does it bit by bit.
THEME_SCRIPT = "scripts/pydata-sphinx-theme.js"
MEASURED_AT_ONCE = (
    '["pre",".nboutput > .output_area",".cell_output > .output",'
    '".jp-RenderedHTMLCommon",".pst-scrollable-table-container"].join(", ")'
)
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

    for sheet in context["css_files"]:
        name = PurePosixPath(str(sheet.filename)).relative_to("_static")
        if not any(name.match(pattern) for pattern in STYLES):
            logger.warning("a style sheet that no page would get: %s", name)
    scripts = []
    for script in filter(wanted, context["script_files"]):
        name = str(getattr(script, "filename", None) or "")
        if "mathjax" in name:
            continue  # book.js loads it when a formula comes near
        wait = {}
        # The search page calls doctools.js at once.
        if templatename != "search.html":
            if name:
                wait = {"defer": "defer"}
            elif "DOCUMENTATION_OPTIONS" in script.attributes["body"]:
                wait = {
                    "type": "module"
                }  # what a script in a page needs to wait
        if wait:
            # A script object is shared by all pages.
            script = type(script)(
                script.filename,
                priority=script.priority,
                **{**script.attributes, **wait},
            )
        scripts.append(script)
    context["script_files"] = scripts
    if body:
        body = PLAIN_CODE.sub(r"\1", body).replace("<span></span>", "")
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


def read_styles(static, name):
    """Return the rules of a style sheet, and of those that it imports.

    Parameters
    ----------
    static : pathlib.Path
    name : str
        Of a file there.

    Returns
    -------
    list of tinycss2.ast.Node
        Addresses as seen from STYLE.
    """
    text = (static / name).read_text(encoding="utf-8")
    here = posixpath.dirname(name)
    there = posixpath.dirname(STYLE)

    def move(match):
        if match[1].startswith("data:"):
            return match[0]
        path = posixpath.relpath(posixpath.join(here, match[1]), there)
        return f'url("{path}")'

    text = re.sub(r"url\(([^()\"']+)\)", move, text)
    rules = []
    for rule in tinycss2.parse_stylesheet(text, True, True):
        if rule.type == "at-rule" and rule.lower_at_keyword == "import":
            (address,) = (t.value for t in rule.prelude if t.type == "string")
            rules += read_styles(
                static, posixpath.normpath(f"{here}/{address}")
            )
        elif rule.type != "at-rule" or rule.lower_at_keyword != "charset":
            rules.append(rule)
    return rules


def can_apply(selector, words):
    """Return whether a page can have what a selector asks for.

    Parameters
    ----------
    selector : str
        Without commas outside of parentheses.
    words : set of str
        All that pages and scripts consist of.

    Returns
    -------
    bool
    """
    # What stands in brackets, and what must not be there or is one of several.
    plain = re.sub(r"\[[^\]]*\]", "", selector)
    plain = re.sub(r":[\w-]+\((?:[^()]|\([^()]*\))*\)", "", plain)
    names = re.findall(r"[.#]((?:[\w-]|\\.)+)", plain)
    return all(name.replace("\\", "") in words for name in names)


def used_rules(rules, words):
    """Return the style rules that a page can need.

    Parameters
    ----------
    rules : list of tinycss2.ast.Node
    words : set of str

    Returns
    -------
    str
    """
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = re.split(
                r",(?![^(\[]*[)\]])", tinycss2.serialize(rule.prelude)
            )
            selectors = [s.strip() for s in selectors if can_apply(s, words)]
            if selectors:
                content = tinycss2.serialize(rule.content).strip()
                kept.append(f"{','.join(selectors)}{{{content}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in (
            "media",
            "supports",
        ):
            inner = used_rules(
                tinycss2.parse_rule_list(rule.content, True, True), words
            )
            if inner:
                prelude = tinycss2.serialize(rule.prelude).strip()
                kept.append(f"@{rule.at_keyword} {prelude}{{{inner}}}")
        elif rule.type == "error":
            # A mistake in a style sheet: browsers skip it, too.
            continue
        else:
            kept.append(rule.serialize())
    return "\n".join(kept)


def shrink_styles(folder):
    """Write the one style sheet that all pages load.

    Parameters
    ----------
    folder : pathlib.Path
        The built book.
    """
    static = folder / "_static"
    words = set()
    for path in [*folder.glob("**/*.html"), *static.glob("**/*.js")]:
        if "mathjax" not in path.parts:
            text = path.read_text(encoding="utf-8")
            words.update(re.findall(r"[\w-]+", text))
    words.update(("mjx-container", "MathJax"))  # come later
    rules = []
    for pattern in STYLES:
        for path in sorted(static.glob(pattern)):
            rules += read_styles(static, path.relative_to(static).as_posix())
    (static / STYLE).write_text(used_rules(rules, words), encoding="utf-8")


def shrink_theme_script(folder):
    """Let book.js find out which boxes scroll, instead of the theme.

    Parameters
    ----------
    folder : pathlib.Path
        The built book.
    """
    script = (THEME / THEME_SCRIPT).read_text(encoding="utf-8")
    if MEASURED_AT_ONCE not in script:
        logger.warning("%s is another one; see lighter.py", THEME_SCRIPT)
    script = script.replace(MEASURED_AT_ONCE, '".measured-by-book-js"')
    script = re.sub(r"//# sourceMappingURL=.*", "", script)
    (folder / "_static" / THEME_SCRIPT).write_text(script, encoding="utf-8")


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
        shrink_styles(folder)
        shrink_theme_script(folder)
        shrink_mathjax(folder / "_static" / "mathjax")


def setup(app):
    """After the other extensions have added their files."""
    app.connect("html-page-context", load_less, priority=900)
    app.connect("build-finished", shrink, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
