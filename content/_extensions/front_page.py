"""Sphinx extension: what the first page says comes from recorded files.

The figures of the recorded results are substitutions, so that prose can say
`{{ won }}`. The directive `learning-curve` draws the recorded runs, as an
SVG that takes its colors from the page.
"""

import csv
import json
import re
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from recordings import figure
from sphinx.util.docutils import SphinxDirective

DATA = Path(__file__).resolve().parents[1] / "data"
CHAPTER = "content/pong-from-pixels.ipynb"
# Colors to draw with, and what the page makes of them.
INK, LINES = "#010203", "#040506"
PAGE_COLORS = {INK: "currentColor", LINES: "var(--pst-color-primary)"}


def rows(name):
    """Return the rows of a recorded table, numbers as numbers.

    Parameters
    ----------
    name : str

    Returns
    -------
    list of dict
    """
    with open(DATA / name, encoding="utf-8", newline="") as file:
        return [
            {
                key: float(text) if re.fullmatch(r"[-+\d.]+", text) else text
                for key, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


def facts(name):
    """Return what made a recorded result.

    Parameters
    ----------
    name : str

    Returns
    -------
    dict
    """
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def curves():
    """Return the minutes and mean returns of each recorded run.

    Returns
    -------
    list of ndarray, shape (2, n)
    """
    table = rows("reference-runs.csv")
    return [
        np.array(
            [
                (row["seconds"] / 60, row["mean_return"])
                for row in table
                if row["seed"] == seed
            ]
        ).T
        for seed in dict.fromkeys(row["seed"] for row in table)
    ]


def minutes_to_zero(minutes, returns):
    """Return when a run has caught up with the game, or infinity.

    Parameters
    ----------
    minutes, returns : ndarray, shape (n,)

    Returns
    -------
    float
    """
    ahead = np.flatnonzero(returns >= 0)
    return float(minutes[ahead[0]]) if len(ahead) else np.inf


def launch(repository, branch):
    """Return links that run the first chapter elsewhere, in Markdown.

    Parameters
    ----------
    repository, branch : str

    Returns
    -------
    dict of str
    """
    where = urlsplit(repository).path.strip("/")
    colab = "https://colab.research.google.com/github"
    binder = "https://mybinder.org/v2/gh"
    return {
        "colab": f"[Colab]({colab}/{where}/blob/{branch}/{CHAPTER})",
        "binder": f"[Binder]({binder}/{where}/{branch}"
        f"?urlpath=lab/tree/{CHAPTER})",
    }


def substitutions():
    """Return the figures that the first page quotes.

    Returns
    -------
    dict of str

    Raises
    ------
    ValueError
        If the recorded agents do not win: then the page's text is wrong.
    """
    runs = curves()
    to_zero = np.median([minutes_to_zero(*run) for run in runs])
    played = [
        row["return"]
        for row in rows("evaluation.csv")
        if row["actions"] == "greedy"
    ]
    mean = np.mean(played)
    if not np.isfinite(to_zero) or mean <= 0:
        raise ValueError(
            "the recorded agents do not win, but the page says so"
        )
    games, agent = facts("games.json"), facts("agent.json")
    stages = [agent, agent.get("finished with")]
    decisions = sum(s["settings"]["decisions"] for s in stages if s)
    return {
        "runs": str(len(runs)),
        "cores": str(facts("reference-runs.json")["made with"]["cores"]),
        "minutes_to_zero": f"{to_zero:.1f}",
        "decisions": f"{decisions:,}",
        "won": str(sum(points > 0 for points in played)),
        "played": str(len(played)),
        "mean": f"{mean:.1f}",
        "before": f"{games['before']['return']:+.0f}".replace("-", "\u2212"),
        "after": f"{games['after']['return']:+.0f}".replace("-", "\u2212"),
    }


def set_substitutions(app, config):
    """Tell MyST the figures."""
    options = config.html_theme_options
    config.myst_substitutions = {
        **substitutions(),
        **launch(options["repository_url"], options["repository_branch"]),
    }


def draw():
    """Return the learning curves as SVG, which says what is seen.

    Returns
    -------
    str
    """
    runs = curves()
    style = {
        "font.size": 12,
        "svg.fonttype": "none",
        "svg.hashsalt": "learning-curve",
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor"), INK
        ),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    with rc_context(style):
        drawing = Figure(figsize=(5.4, 3.2), layout="constrained")
        ax = drawing.subplots()
        for minutes, returns in runs:
            ax.plot(minutes, returns, color=LINES, linewidth=1.5)
        ax.axhline(0, color=INK, linestyle=":", linewidth=1)
        last = max(minutes[-1] for minutes, _ in runs)
        ax.text(last, 0.6, "as good as the game", ha="right", color=INK)
        ax.set(
            xlabel="minutes of training",
            ylabel="points won minus points lost",
            ylim=(-22, 22),
            yticks=[-21, 0, 21],
        )
        ax.set_xlim(left=0)
        ax.spines[["top", "right"]].set_visible(False)
        drawing.patch.set_visible(False)
        ax.patch.set_visible(False)
        buffer = StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    ends = [returns[-1] for _, returns in runs]
    text = (
        f"{len(runs)} learning curves, one for each recorded run. They begin "
        "near minus 21 points a game, rise, and cross zero between "
        f"{min(minutes_to_zero(*run) for run in runs):.1f} and "
        f"{max(minutes_to_zero(*run) for run in runs):.1f} minutes. After "
        f"{last:.0f} minutes they end between {min(ends):+.0f} and "
        f"{max(ends):+.0f}."
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S
    )
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for drawn, shown in PAGE_COLORS.items():
        svg = svg.replace(drawn, shown)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)


class LearningCurve(SphinxDirective):
    """Shows the recorded runs, with the caption as content."""

    has_content = True

    def run(self):
        """Return a figure."""
        self.env.note_dependency(str(DATA / "reference-runs.csv"))
        return figure(self, "learning-curve", draw())


def setup(app):
    """Before MyST reads its settings."""
    app.add_directive("learning-curve", LearningCurve)
    app.connect("config-inited", set_substitutions, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
