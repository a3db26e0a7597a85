# Made by `make notebooks` from content/video-playback.md: edit that.

import os
import signal
import time
from threading import Timer

from pyvirtualdisplay import Display
from pyvirtualdisplay.abstractdisplay import XStartError


def start_virtual_display(seconds=20):
    """Start a virtual screen of 400×300 pixels; return its Display."""
    screen = Display(size=(400, 300), extra_args=["-terminate", "5"])
    limit = Timer(seconds, lambda: os.kill(screen.pid, signal.SIGKILL))
    start = time.monotonic()
    limit.start()
    try:
        return screen.start()
    except XStartError:
        if time.monotonic() < start + seconds:
            raise  # Xvfb has ended by itself, and the error says why
        raise TimeoutError(
            f"Xvfb has no screen ready in {seconds} seconds. It has to write "
            "to the folder /tmp: look at its permissions."
        ) from None
    finally:
        limit.cancel()
