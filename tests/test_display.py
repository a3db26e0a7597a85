"""Pong's own window opens on a virtual screen, without waiting or leftovers."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from conftest import CONTENT
from pong.video_playback import start_virtual_display

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Xvfb is for Linux"
)
SCRIPT = """
import gymnasium as gym
from pong.set_up import set_up
from pong.video_playback import start_virtual_display

set_up("1.0")
screen = start_virtual_display()
env = gym.make("ALE/Pong-v5", render_mode="human")
env.reset(seed=0)
env.step(2)
print("Xvfb", screen.pid, flush=True)
"""
READ_ONLY_TMP = (
    "mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp && "
    '! touch /tmp 2>/dev/null && exec "$@"'
)


def run(script, *prefix, **changes):
    """Run a program with DISPLAY as told, and no sound."""
    assert shutil.which("Xvfb"), "apt.txt names it; `make test` installs it"
    env = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    sdl = {"SDL_AUDIODRIVER": "dummy", "SDL_VIDEODRIVER": "x11"}
    return subprocess.run(
        [*prefix, sys.executable, "-c", script],
        env=env | sdl | changes,
        cwd=CONTENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def ends(pid, seconds=30):
    """Tell whether a process that the page has started ends by itself."""
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    return not psutil.pid_exists(pid)


@pytest.mark.parametrize("end", ["env.close()", "import os; os.kill(os.getpid(), 9)"])
def test_window_opens_and_no_screen_stays(end):
    done = run(SCRIPT + end, DISPLAY=":77")  # where no screen is
    assert done.returncode == (0 if "close" in end else -9), done.stderr
    assert ends(int(re.fullmatch(r"Xvfb (\d+)\n", done.stdout)[1]))


@pytest.mark.parametrize("display", ["", ":77"])
def test_read_only_tmp_is_said_soon(display):
    prefix = ["unshare", "--mount", "sh", "-c", READ_ONLY_TMP, "sh"]
    if subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("mounting is not allowed here")
    limit = inspect.signature(start_virtual_display).parameters["seconds"]
    assert limit.default <= 60
    short = SCRIPT.replace("display()", "display(2)")
    done = run(short, *prefix, DISPLAY=display, TMPDIR="/var/tmp")
    last = done.stderr.splitlines()[-1]
    assert re.match("TimeoutError: .* 2 seconds.* /tmp", last), done.stderr
