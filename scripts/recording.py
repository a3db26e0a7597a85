"""What the programs that record results share: jobs, tables, and what made them."""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import metadata
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from pong.set_up import VERSION, set_up

ROOT = Path(__file__).resolve().parent.parent
BUILD, DATA = ROOT / "_build", ROOT / "content" / "pong" / "data"
PROGRAMS = [*DATA.parent.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
# A recording that was interrupted goes on with the same code only.
CODE = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(PROGRAMS)))
CODE = CODE.hexdigest()
PACKAGES = ("numpy", "scipy", "gymnasium", "ale-py")
CLOCK = [time.monotonic()]  # when the program began, or wrote its last table


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
        # `make record` says when it began, because a night has two dates, and
        # with what: the first table that it writes is a change.
        "date": os.environ.get("RECORD_DATE") or time.strftime("%Y-%m-%d"),
        "commit": os.environ.get("RECORD_COMMIT")
        or commit.stdout.strip()
        or "unknown",
    }


def write(path, text):
    """Write a file, completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def save_facts(name, **facts):
    """Write down beside a recorded file what it was made with."""
    text = json.dumps({"made with": made_with(), **facts}, indent=1)
    write(DATA / f"{name}.json", text + "\n")


def hours(seconds):
    """Return seconds in hours, rounded."""
    return round(seconds / 3600, 3)


def save_table(name, rows, **facts):
    """Write a recorded table, what it was made with, and how long that took."""
    began, CLOCK[0] = CLOCK[0], time.monotonic()
    table = pd.DataFrame(rows)
    write(DATA / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    save_facts(name, **{"hours": hours(CLOCK[0] - began)} | facts)


def begin(code):
    """Prepare a process, which must have the code of the one that started it."""
    if code != CODE:
        raise RuntimeError("the code has changed since the recording began")
    set_up(VERSION)


def n_processes():
    """Return how many jobs are done at a time: PONG_JOBS, or one for each core."""
    return int(os.environ.get("PONG_JOBS") or os.cpu_count())


def share_out(function, *columns):
    """Return what a function makes of each job, computed side by side."""
    n_jobs = n_processes()
    context = get_context("spawn")
    with ProcessPoolExecutor(n_jobs, context, begin, (CODE,)) as pool:
        return list(pool.map(function, *columns))


def part_of(name, job):
    """Return the file in which the rows of one of a table's jobs are kept."""
    versions = [metadata.version(package) for package in PACKAGES]
    key = hashlib.sha256(repr((CODE, versions, str(name), job)).encode())
    return BUILD / f"{Path(name).name}-part-{key.hexdigest()[:16]}.json"


def rows_of(function, job, part):
    """Return the rows of a function's job, which is not done twice."""
    if not part.exists():
        BUILD.mkdir(exist_ok=True)
        began, rows = time.monotonic(), function(job)
        done = {"rows": rows, "seconds": time.monotonic() - began}
        write(part, json.dumps(done))
    done = json.loads(part.read_text(encoding="utf-8"))
    print(*done["rows"][-1:], flush=True)
    return done["rows"], done["seconds"]


def record(name, function, jobs, columns=(), **facts):
    """Record the rows of a function's jobs, and forget what was kept of them."""
    parts = [part_of(name, job) for job in jobs]
    done = share_out(rows_of, repeat(function), jobs, parts)
    tables, seconds = zip(*done)
    rows = pd.DataFrame([row for table in tables for row in table])
    ended = [part.stat().st_mtime for part in parts]
    days = {time.strftime("%Y-%m-%d", time.localtime(t)) for t in ended}
    took = hours(sum(seconds) / n_processes())  # with all that was kept
    facts = {"trained": sorted(days), "hours": took} | facts
    save_table(name, rows.rename(columns=dict(columns)), **facts)
    for part in parts:  # the next time, it begins anew
        part.unlink()


def per_second(rows):
    """Return the decisions per second after the first row.

    That one has seen the emulators start, which takes seconds.
    """
    first, last = rows[0], rows[-1]
    decisions = last["decisions"] - first["decisions"]
    return decisions / (last["seconds"] - first["seconds"])


def main(commands):
    """Run the functions that the command line names, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", nargs="+", choices=commands)
    names = parser.parse_args().command
    set_up(VERSION)
    made_with()  # before what is written changes what is committed
    for name in names:
        commands[name]()
