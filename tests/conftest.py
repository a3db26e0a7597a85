"""What the tests share: the project's files, programs, mounts, the built book."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
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
# What others have set for their own programs.
INHERITED = (
    "DISPLAY", "GIT", "JUPYTER", "OPENBLAS", "PONG_CHECKPOINTS", "PYTHON", "WAYLAND", "XDG",
)  # fmt: skip
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="mounts, screens")
pong.set_up.set_up(pong.set_up.VERSION)


def says(page, sentence, *values):
    """Check that a page says this, with what the recorded tables give."""
    sentence = re.sub(r"-(?=\d)", "−", sentence.format(*values))
    assert sentence in (CONTENT / f"{page}.md").read_text(encoding="utf-8"), sentence


class SideBySide(LoadScopeScheduling):
    """Runs tests at the same time, but for those that share something."""

    def _split_scope(self, nodeid):
        """Return the name of a group of tests that run one after the other."""
        file = Path(nodeid.partition("::")[0]).stem
        if file in ("test_book", "test_browser"):  # they share the book
            return "book"
        return nodeid if file == "test_environments" else file


@pytest.hookimpl(optionalhook=True)  # also without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Tell pytest-xdist which tests must not run at the same time.

    And to take them in their order: the book and Colab's notebooks take longest.
    """
    config.option.loadscopereorder = False
    return SideBySide(config, log)


@pytest.fixture(scope="session")
def config():
    """Return the settings of the book."""
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def run(*command, **options):
    """Run a command to its end; it says all in its stdout."""
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    how |= {"stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, **how, **options)


def clean_env(tmp_path, **changes):
    """Return an environment without a screen, and with a home of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(INHERITED)}
    # Seconds of training are enough: it is the place that matters.
    env["PONG_BUDGET"] = "5"
    for variable, name in (("HOME", "home"), ("TMPDIR", "tmp")):
        (tmp_path / name).mkdir(exist_ok=True)
        env[variable] = str(tmp_path / name)
    return env | changes


def left_behind(env):
    """Return the processes that still run in an environment, after a while."""
    left, deadline = True, time.monotonic() + 120
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = [
            process.info["cmdline"]
            for process in psutil.process_iter(["cmdline", "environ"])
            if (process.info["environ"] or {}).get("HOME") == env["HOME"]
        ]
    return left


def unshared(script):
    """Return the start of commands that run after a script, which alone mounts."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    start = ["unshare", *user, "--mount", "sh", "-c", f'{script} && exec "$@"', "sh"]
    if subprocess.run([*start, "true"]).returncode:
        pytest.skip("mounting is not allowed here")
    return start


def read_only(folder):
    """Return the start of commands for which a folder is read-only, even for root."""
    return unshared(
        f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && "
        f'! touch {folder} 2>/dev/null && cd "$PWD"'
    )


def build_book():
    """Build the book with the command of the README; return its folder and log."""
    env = {**os.environ, "MAKEFLAGS": ""}
    done = run("make", "book", "BUDGET=quick", cwd=ROOT, env=env)
    said = [x for x in done.stdout.splitlines() if "WARNING" in x or "Error" in x]
    assert done.returncode == 0, "\n".join(said[-20:]) or done.stdout[-3000:]
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
