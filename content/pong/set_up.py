# Made by `make notebooks` from content/set-up.md: edit that.

import json
import logging
import os
import sys
import tempfile
import warnings
from importlib import resources

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import ale_py
import gymnasium as gym
import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython

VERSION = "1.0"


def set_up(version):
    """Prepare a notebook that belongs to this version of the book."""
    if version != VERSION:
        raise ImportError(
            f"This notebook is of version {version} of the book, the package "
            f"`pong` of version {VERSION}. Take both from the same place."
        )
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)
    # A second run replaces the first run's videos. That is wanted.
    warnings.filterwarnings("ignore", message=".*Overwriting existing videos")
    shell = get_ipython()
    if hasattr(shell, "kernel"):  # whatever MPLBACKEND says
        shell.run_line_magic("matplotlib", "inline")
    elif hasattr(sys.stdout, "reconfigure"):  # "?" for what a terminal lacks
        sys.stdout.reconfigure(errors="replace")
    plt.style.use("tableau-colorblind10")
    plt.rcParams["figure.figsize"] = (5.5, 3)
    plt.rcParams["figure.dpi"] = 150
    plt.rcParams["figure.constrained_layout.use"] = True


def writable_folder(name):
    """Return a folder to write to: `name`, or else a temporary one."""
    try:
        os.makedirs(name, exist_ok=True)
        with tempfile.TemporaryFile(dir=name):
            return name
    except OSError:
        return tempfile.mkdtemp(prefix=f"{os.path.basename(name)}-")


def training_seconds():
    """Return how long to train, in seconds: infinite on the full budget."""
    budget = os.environ.get("PONG_BUDGET", "full")
    try:
        seconds = float({"full": "inf", "quick": "45"}.get(budget, budget))
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        expected = "full, quick, or a number of seconds"
        raise ValueError(f"PONG_BUDGET: expected {expected}, got {budget!r}")
    return seconds


def data_file(name):
    """Return the path of a file that the package brings along."""
    folder = resources.files("pong") / "data"
    path = folder / name
    if not path.is_file():
        there = sorted(f.name for f in folder.iterdir())
        raise FileNotFoundError(f"no {name} among {', '.join(there)}")
    return path


def recorded(name):
    """Return a recorded table as a pandas DataFrame."""
    return pd.read_csv(data_file(f"{name}.csv"))


def facts(name):
    """Return what is written down beside a recorded table or file."""
    return json.loads(data_file(f"{name}.json").read_text(encoding="utf-8"))


def provenance(name):
    """Return in one line what a recorded table or file was made with."""
    made_with = facts(name)["made with"]
    return ", ".join(f"{key} {value}" for key, value in made_with.items())
