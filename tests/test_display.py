"""Pong's own window opens on a virtual screen, without waiting or leftovers."""

import os
import re
import sys

from conftest import CONTENT, clean_env, left_behind, linux_only, read_only, run
from pong.video_playback import start_virtual_display

pytestmark = linux_only
SCRIPT = """
import os
import gymnasium as gym
from pong.set_up import set_up
from pong.video_playback import start_virtual_display

set_up("1.0")
screen = start_virtual_display()
env = gym.make("ALE/Pong-v5", render_mode="human")
env.reset(seed=0)
env.step(2)
print("it is open", flush=True)
"""
NO_SCREEN = {"DISPLAY": ":77", "SDL_AUDIODRIVER": "dummy", "SDL_VIDEODRIVER": "x11"}


def test_window_opens_and_no_screen_stays(tmp_path):
    env = clean_env(tmp_path, **NO_SCREEN)
    for end, status in (("env.close()", 0), ("os.kill(os.getpid(), 9)", -9)):
        done = run(sys.executable, "-c", SCRIPT + end, cwd=CONTENT, env=env)
        assert "it is open" in done.stdout, done.stdout
        assert done.returncode == status
    assert not left_behind(env)


def test_read_only_tmp_is_said_soon():
    assert start_virtual_display.__defaults__[0] <= 60  # seconds
    python = (sys.executable, "-c", SCRIPT.replace("display()", "display(2)"))
    env = {**os.environ, **NO_SCREEN, "TMPDIR": "/var/tmp"}
    done = run(*read_only("/tmp"), *python, cwd=CONTENT, env=env, timeout=120)
    last = done.stdout.splitlines()[-1]
    assert re.match("TimeoutError: .* 2 seconds.* /tmp", last), done.stdout
