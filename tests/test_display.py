"""Pong's own window opens where there is a screen, here a virtual one."""

import os
import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import ale_py
import gymnasium as gym
from pyvirtualdisplay import Display

gym.register_envs(ale_py)
with Display(visible=False, size=(400, 300)):
    env = gym.make("ALE/Pong-v5", render_mode="human")
    env.reset(seed=0)
    for _ in range(5):
        env.step(2)
    env.close()
print("played")
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Xvfb is for Linux"
)
def test_window_opens_on_a_virtual_screen():
    assert shutil.which("Xvfb"), "apt.txt names it; `make test` installs it"
    env = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**env, "SDL_AUDIODRIVER": "dummy"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "played", done.stderr
