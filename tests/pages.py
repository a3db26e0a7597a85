"""Serves the built book as GitHub Pages does, for the tests and for Lighthouse."""

import functools
import gzip
import http.server
import re
import threading
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

COMPRESSED = (".html", ".css", ".js", ".json", ".svg", ".xml", ".txt")


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers GET under a sub-path: gzip, parts of videos, and 404.html."""

    protocol_version = "HTTP/1.1"
    guess_type = http.server.SimpleHTTPRequestHandler.guess_type
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map

    def __init__(self, *arguments, folder, prefix):
        self.folder, self.prefix = Path(folder).resolve(), prefix
        super().__init__(*arguments)

    def log_message(self, *arguments):
        """Keep quiet."""

    def do_GET(self):
        """Send a file, or a part of it."""
        address = self.path.partition("?")[0]
        status, path = HTTPStatus.OK, None
        if address.startswith(self.prefix):
            path = self.folder / address.removeprefix(self.prefix)
            if path.is_dir():
                path /= "index.html"
        if path is None or not path.is_file():
            status, path = HTTPStatus.NOT_FOUND, self.folder / "404.html"
        data = path.read_bytes()
        headers = {
            "Content-Type": self.guess_type(str(path)),
            "Accept-Ranges": "bytes",
            "Cache-Control": "max-age=600",
        }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and status == HTTPStatus.OK:
            begin, end = int(part[1]), int(part[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
            status, data = HTTPStatus.PARTIAL_CONTENT, data[begin : end + 1]
        elif path.suffix in COMPRESSED and "gzip" in self.headers.get(
            "Accept-Encoding", ""
        ):
            headers["Content-Encoding"] = "gzip"
            data = gzip.compress(data, 6)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the browser has seen enough of a video


@contextmanager
def serve(folder, prefix="/"):
    """Serve a folder on this computer, and yield its address.

    Parameters
    ----------
    folder : str or pathlib.Path
    prefix : str
        The sub-path, with slashes around it.

    Yields
    ------
    str
        With a slash at the end.
    """
    handler = functools.partial(Pages, folder=folder, prefix=prefix)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{prefix}"
    server.shutdown()
    server.server_close()
    thread.join()
