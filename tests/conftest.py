"""What the tests share: the project's files, recordings, the built book."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from imageio_ffmpeg import count_frames_and_secs, read_frames
from playwright.sync_api import sync_playwright
from xdist.scheduler import LoadScopeScheduling

import pong.set_up  # before NumPy: it says how many threads there are
from export import notebooks

ROOT = Path(__file__).resolve().parent.parent
CONTENT = ROOT / "content"
SOURCES = notebooks()
every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    # No other computer can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
pong.set_up.set_up(pong.set_up.VERSION)


class SideBySide(LoadScopeScheduling):
    """Runs tests at the same time, but for those that share something."""

    def _split_scope(self, nodeid):
        """Return the name of a group of tests that run one after the other."""
        path, _, name = nodeid.partition("::")
        file = Path(path).stem
        if file in ("test_book", "test_browser"):  # they share the book
            return "book"
        if file == "test_environments" and "[" in name:  # whole notebooks
            return "colab" if name.startswith("test_colab") else name
        return file


@pytest.hookimpl(optionalhook=True)  # also without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Tell pytest-xdist which tests must not run at the same time."""
    return SideBySide(config, log)


@pytest.fixture(scope="session")
def config():
    """Return the settings of the book."""
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def check_video(path):
    """Decode a recording of Pong, check it, and return its pictures (RGB)."""
    n_pictures, seconds = count_frames_and_secs(str(path))
    # The speed of the console, or twice that.
    assert min(abs(seconds - n_pictures / fps) for fps in (15, 30)) < 0.2
    reader = read_frames(str(path))
    facts = next(reader)
    assert facts["codec"] == "h264"
    assert facts["pix_fmt"].startswith("yuv420p")
    # The screen, or the video of "Inside the agent".
    assert facts["size"] in {(160, 210), (640, 448)}
    pictures = list(reader)
    assert len(pictures) == n_pictures
    assert len(set(pictures)) > n_pictures / 2
    return pictures


def build_book():
    """Build the book with the command of the README; return its folder and log."""
    done = subprocess.run(
        ["make", "book", "BUDGET=quick"],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return SimpleNamespace(html=ROOT / "_build" / "html", log=done.stdout)


@pytest.fixture(scope="session")
def book():
    """Return the HTML folder of the book, built now, and the log of the build."""
    return build_book()


@pytest.fixture(scope="session")
def browser():
    """Start Debian's Chromium, or else the Chrome that is installed."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        choice = {"executable_path": path} if path else {"channel": "chrome"}
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        # Chromium's sandbox does not work for root.
        arguments = ARGUMENTS + ["--no-sandbox"] * root
        browser = playwright.chromium.launch(args=arguments, **choice)
        yield browser
        browser.close()
