"""Sphinx extension: videos as files, with a poster and a caption.

A notebook that holds its videos as base64 works wherever it is opened. A
page of the book need not: here each video becomes a file, which the browser
fetches when somebody wants to see it. The label of the player becomes a
caption for all. Pages without code show a video of the repository with the
directive `recording`.
"""

import base64
import hashlib
import re
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import imageio_ffmpeg
from bs4 import BeautifulSoup
from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

EMBEDDED = re.compile(r"data:video/mp4;base64,(.*)", re.DOTALL)
FOLDER = "_images"
POSTER_AT = 0.4  # of the recording

logger = logging.getLogger(__name__)


def poster(path):
    """Return a picture from a recording.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    PIL.Image.Image
    """
    _, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    start = ["-ss", f"{POSTER_AT * seconds:.2f}"]
    reader = imageio_ffmpeg.read_frames(str(path), input_params=start)
    size = next(reader)["size"]
    picture = Image.frombytes("RGB", size, next(reader))
    reader.close()
    return picture


def save(data, outdir):
    """Write a recording and its poster; return their names and the size.

    Parameters
    ----------
    data : bytes
        An MP4 file.
    outdir : pathlib.Path
        The built book.

    Returns
    -------
    video, image : str
        Relative to the built book. They depend on the content alone.
    size : tuple of int
        Width and height in pixels.
    """
    stem = f"{FOLDER}/recording-{hashlib.sha256(data).hexdigest()[:16]}"
    path = outdir / f"{stem}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    picture = poster(path)
    buffer = BytesIO()
    picture.quantize(64).save(buffer, "PNG", optimize=True)
    (outdir / f"{stem}.png").write_bytes(buffer.getvalue())
    return f"{stem}.mp4", f"{stem}.png", picture.size


def content(address, folder):
    """Return the bytes of a video in a page.

    Parameters
    ----------
    address : str
        base64, or a file relative to the page.
    folder : pathlib.Path
        Where the page's source is.

    Returns
    -------
    bytes or None
        None if it is an address somewhere else.
    """
    embedded = EMBEDDED.match(address)
    if embedded:
        return base64.b64decode(embedded[1])
    path = folder / address
    return path.read_bytes() if path.is_file() else None


def put_beside(app, docname, soup):
    """Replace the videos of a piece of a page by files beside the page.

    Parameters
    ----------
    app : sphinx.application.Sphinx
    docname : str
    soup : bs4.BeautifulSoup
        Is changed.
    """
    here = app.builder.get_target_uri(docname)
    folder = Path(app.env.doc2path(docname)).parent
    for video in soup.find_all("video"):
        source = video if video.has_attr("src") else video.find("source")
        data = content(source["src"] if source else "", folder)
        if data is None:
            logger.warning("a video that is not there", location=docname)
            continue
        label = video.attrs.pop("aria-label", "")
        if not label:
            logger.warning("a video without a label", location=docname)
        name, image, (width, height) = save(data, Path(app.outdir))
        shown = int(video.get("height", height))
        video.clear()
        video.attrs |= {
            "src": relative_uri(here, name),
            "poster": relative_uri(here, image),
            "preload": "none",
            "width": str(round(width * shown / height)),
            "height": str(shown),
        }
        link = soup.new_tag("a", href=video["src"])
        link.string = label
        video.append(link)  # for browsers that play no video
        if video.has_attr("data-captioned"):
            video["aria-label"] = label
            continue
        figure = video.find_parent("figure")
        if figure is None:
            figure = video.wrap(soup.new_tag("figure"))
            caption = soup.new_tag("figcaption")
            caption.string = f"{label}."
            figure.append(caption)
        figure["class"] = "recording"
        figure.attrs.pop("style", None)
        caption = figure.find("figcaption")
        caption["id"] = Path(name).stem
        caption.attrs.pop("style", None)
        video["aria-labelledby"] = caption["id"]


def extract(app, doctree, docname):
    """Go through the pieces of a page that are HTML."""
    if app.builder.format != "html":
        return
    for node in doctree.findall(nodes.raw):
        if "html" in node["format"].split() and "<video" in node.astext():
            soup = BeautifulSoup(node.astext(), "html.parser")
            put_beside(app, docname, soup)
            node.clear()
            node += nodes.Text(str(soup))


class Recording(SphinxDirective):
    """Shows a video: `{recording} path`, with the caption as content.

    The option `label` says what is seen. With `playing`, it plays by itself
    while it is in view, unless the reader does not want things to move.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {
        "label": directives.unchanged_required,
        "playing": directives.flag,
    }

    def run(self):
        """Return a figure."""
        folder = Path(self.env.doc2path(self.env.docname)).parent
        self.env.note_dependency(str(folder / self.arguments[0]))
        soup = BeautifulSoup("", "html.parser")
        attributes = {
            "controls": "",
            "muted": "",
            "loop": "",
            "playsinline": "",
            "data-captioned": "",
            "aria-label": self.options.get("label", ""),
            "src": self.arguments[0],
        }
        if "playing" in self.options:
            attributes["data-playing"] = ""
        video = soup.new_tag("video", attrs=attributes)
        return figure(self, "recording", str(video))


def figure(directive, kind, html):
    """Return the nodes of a figure without a number.

    Parameters
    ----------
    directive : docutils.parsers.rst.Directive
        Its content is the caption.
    kind : str
        For the style sheet.
    html : str
        What is shown.

    Returns
    -------
    list of docutils.nodes.Node
    """
    caption = nodes.Element()
    directive.state.nested_parse(
        directive.content, directive.content_offset, caption
    )

    def raw(text):
        return nodes.raw("", text, format="html")

    return [
        raw(f'<figure class="{kind}">'),
        raw(html),
        raw("<figcaption>"),
        *caption.children,
        raw("</figcaption></figure>"),
    ]


def setup(app):
    """Register the directive; look for videos when a page is written."""
    app.add_directive("recording", Recording)
    app.connect("doctree-resolved", extract)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
