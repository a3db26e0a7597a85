"""Measure pages of the built book with Lighthouse: `make bench` calls it.

Each page is measured three times, as Lighthouse's phone on a slow connection;
the median counts. It fails where a page misses the goal.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import serve

ROOT = Path(__file__).resolve().parent.parent
# What shared links open, and the heaviest chapter.
PAGES = ("index", "train-to-win", "pong-from-pixels", "inside-the-agent")
GOALS = {
    "performance": 85,
    "accessibility": 100,
    "best-practices": 95,
    "seo": 95,
}
FIRST_PAGE_GOALS = GOALS | {"performance": 90}
RUNS = int(os.environ.get("LIGHTHOUSE_RUNS", "3"))
MEASURES = {
    "first-contentful-paint": "first paint (ms)",
    "largest-contentful-paint": "largest paint (ms)",
    "interactive": "usable (ms)",
    "total-blocking-time": "blocked (ms)",
    "total-byte-weight": "bytes",
}


def lighthouse(address):
    """Return Lighthouse's report on a page, as parsed JSON."""
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    flags = "--headless=new --disable-gpu" + " --no-sandbox" * root
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            shutil.which("npx") or "npx",
            *("--yes", "lighthouse@12", address, "--quiet"),
            *("--output=json", f"--output-path={report}"),
            f"--chrome-flags={flags}",
        ]
        environment = {**os.environ, "CHROME_PATH": chrome or ""}
        subprocess.run(command, check=True, env=environment)
        return json.loads(report.read_text(encoding="utf-8"))


def median(reports, part, name, key):
    """Return the median of a figure over some reports."""
    return statistics.median(report[part][name][key] for report in reports)


def main():
    """Print the scores; return whether all goals are reached."""
    reached = True
    with serve(ROOT / "_build" / "html", "/pong-from-pixels/") as site:
        for page in PAGES:
            print(page, flush=True)
            reports = [lighthouse(f"{site}{page}.html") for _ in range(RUNS)]
            for name, label in MEASURES.items():
                value = median(reports, "audits", name, "numericValue")
                print(f"  {label}: {value:,.0f}")
            goals = FIRST_PAGE_GOALS if page == "index" else GOALS
            for name, goal in goals.items():
                score = round(
                    100 * median(reports, "categories", name, "score")
                )
                print(f"  {name}: {score}, the goal is {goal}")
                if score < goal:
                    reached = False
                    for reference in reports[0]["categories"][name][
                        "auditRefs"
                    ]:
                        audit = reports[0]["audits"][reference["id"]]
                        if audit["score"] not in (None, 1):
                            print("    ", audit["id"], audit["score"])
    return reached


if __name__ == "__main__":
    sys.exit(not main())
