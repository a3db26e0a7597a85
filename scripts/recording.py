"""What the programs that record results share: how a table is written, and with what."""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "content" / "pong" / "data"
PACKAGES = ("numpy", "scipy", "gymnasium", "ale-py")


def processor():
    """Return the processor's name, without what only marketing adds."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [s for s in text.splitlines() if s.startswith("model name")]
    if not names:  # on ARM
        return platform.processor() or platform.machine()
    return names[0].partition(": ")[2].split("@")[0].strip()


@cache
def made_with():
    """Return the machine, the versions, the date, and the commit, at the start."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        # `make record` says when it began, because a night has two dates.
        "date": os.environ.get("RECORD_DATE") or time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or "unknown",
    }


def key_of(*what):
    """Return a short name, by which parts made with other settings are not found."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


def write(path, text):
    """Write a file, completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def save_facts(name, **facts):
    """Write down beside a recorded file what it was made with."""
    text = json.dumps({"made with": made_with(), **facts}, indent=1)
    write(DATA / f"{name}.json", text + "\n")


def save_table(name, rows, **facts):
    """Write a recorded table, and what it was made with."""
    table = pd.DataFrame(rows)
    write(DATA / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    save_facts(name, **facts)


def main(commands):
    """Run the functions that the command line names, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", nargs="+", choices=commands)
    names = parser.parse_args().command
    made_with()  # before what is written changes what is committed
    for name in names:
        commands[name]()
