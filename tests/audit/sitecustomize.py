"""Write down which files a program that finds this module writes, and whom it asks."""

import os
import sys

_LOG = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _write_down(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes) and (flags or 0) & _WRITES:
            path = os.path.abspath(os.fsdecode(path))
            os.write(_LOG, f"write {path}\n".encode())
    elif event in ("os.mkdir", "os.rename"):
        path = os.path.abspath(os.fsdecode(arguments[event == "os.rename"]))
        os.write(_LOG, f"write {path}\n".encode())
    elif event == "socket.connect":
        os.write(_LOG, f"connect {arguments[1]}\n".encode())


sys.addaudithook(_write_down)
