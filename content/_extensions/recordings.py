"""Sphinx extension: videos as files, with a poster and a caption.

A notebook that holds its videos as base64 works wherever it is opened. In the
book each becomes a file, which the browser fetches when somebody wants to see
it. The label of the player is its caption.
"""

import base64
import hashlib
import re
from pathlib import Path

import imageio_ffmpeg
from bs4 import BeautifulSoup
from docutils import nodes
from PIL import Image
from sphinx.util.osutil import relative_uri

EMBEDDED = re.compile(r"data:video/mp4;base64,(.*)", re.DOTALL)
POSTER_AT = 0.4  # of the recording


def save(data, outdir):
    """Write a recording and its poster; return their names and the size."""
    stem = f"_images/recording-{hashlib.sha256(data).hexdigest()[:16]}"
    path = outdir / f"{stem}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    _, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    start = ["-ss", f"{POSTER_AT * seconds:.2f}"]
    reader = imageio_ffmpeg.read_frames(str(path), input_params=start)
    size = next(reader)["size"]
    picture = Image.frombytes("RGB", size, next(reader))
    reader.close()
    picture.quantize(64).save(outdir / f"{stem}.png", optimize=True)
    return f"{stem}.mp4", f"{stem}.png", size


def put_beside(app, docname, html):
    """Return HTML whose videos are files beside the page."""
    soup = BeautifulSoup(html, "html.parser")
    here = app.builder.get_target_uri(docname)
    folder = Path(app.env.doc2path(docname)).parent
    for video in soup.find_all("video"):
        source = video if video.has_attr("src") else video.find("source")
        embedded = EMBEDDED.match(source["src"])
        data = (
            base64.b64decode(embedded[1])
            if embedded
            else (folder / source["src"]).read_bytes()
        )
        name, image, (width, height) = save(data, Path(app.outdir))
        shown = int(video.get("height", height))
        video.attrs |= {
            "src": relative_uri(here, name),
            "poster": relative_uri(here, image),
            "preload": "none",
            "width": str(round(width * shown / height)),
            "height": str(shown),
        }
        video.clear()
        link = soup.new_tag("a", href=video["src"])
        link.string = video["aria-label"]
        video.append(link)  # for browsers that play no video
        figure = video.find_parent("figure")
        if figure is None:
            figure = video.wrap(soup.new_tag("figure"))
            figure["class"] = "recording"
        if figure.figcaption is None:
            caption = soup.new_tag("figcaption")
            caption.string = f"{video['aria-label']}."
            figure.append(caption)
    return str(soup)


def extract(app, doctree, docname):
    """Go through the pieces of a page that are HTML."""
    for node in doctree.findall(nodes.raw):
        if "html" in node["format"].split() and "<video" in node.astext():
            html = put_beside(app, docname, node.astext())
            node.clear()
            node += nodes.Text(html)


def setup(app):
    """When a page is written."""
    app.connect("doctree-resolved", extract)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
