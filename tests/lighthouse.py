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
    "performance": 85,  # of a chapter; 90 of the first page
    "accessibility": 100,
    "best-practices": 95,
    "seo": 95,
}
RUNS = int(os.environ.get("LIGHTHOUSE_RUNS", "3"))
MEASURES = {
    "first-contentful-paint": "first paint (s)",
    "largest-contentful-paint": "largest paint (s)",
    "interactive": "usable (s)",
    "total-blocking-time": "blocked (s)",
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


def main():
    """Print the scores; return whether all goals are reached."""
    reached = True
    with serve(ROOT / "_build" / "html", "/pong-from-pixels/") as site:
        for page in PAGES:
            reports = [lighthouse(f"{site}{page}.html") for _ in range(RUNS)]
            scores = {
                name: round(
                    100
                    * statistics.median(
                        report["categories"][name]["score"] for report in reports
                    )
                )
                for name in GOALS
            }
            audits = [report["audits"] for report in reports]
            times = {
                label: round(
                    statistics.median(a[name]["numericValue"] for a in audits) / 1000, 2
                )
                for name, label in MEASURES.items()
            }
            weight = audits[0]["total-byte-weight"]["numericValue"] / 1000
            print(page, scores, times, f"{weight:.0f} kB", flush=True)
            goals = GOALS | {"performance": 90 if page == "index" else 85}
            for name, goal in goals.items():
                if scores[name] < goal:
                    reached = False
                    print(f"  {name}: {scores[name]}, the goal is {goal}")
                    for reference in reports[0]["categories"][name]["auditRefs"]:
                        audit = reports[0]["audits"][reference["id"]]
                        if audit["score"] not in (None, 1):
                            print("   ", audit["id"], audit["score"])
    return reached


if __name__ == "__main__":
    sys.exit(not main())
