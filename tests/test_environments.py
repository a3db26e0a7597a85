"""The notebooks where the readers are: Colab, Binder, servers, small machines."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import psutil
import pytest
from imageio_ffmpeg import read_frames
from jupytext.cli import jupytext as convert
from nbclient import NotebookClient

from conftest import ROOT, SOURCES, clean_env, left_behind, linux_only, read_only, run
from pong.set_up import training_seconds

# Cells of the quickest page. It begins with the cell that every notebook begins with.
PAGE = ROOT / "content" / "set-up.ipynb"
SET_UP = [c.source for c in nbformat.read(PAGE, 4).cells if c.cell_type == "code"]


def test_budget(monkeypatch):
    for text, seconds in {"quick": 45, "7": 7, "full": np.inf}.items():
        monkeypatch.setenv("PONG_BUDGET", text)
        assert training_seconds() == seconds
    for text in ("fast", "0", "-1", "nan"):
        monkeypatch.setenv("PONG_BUDGET", text)
        with pytest.raises(ValueError, match="PONG_BUDGET"):
            training_seconds()
    monkeypatch.delenv("PONG_BUDGET")
    assert training_seconds() == np.inf


# Whole notebooks: the longest test first, so that nothing waits for it at the end


@linux_only
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="too new for Colab's NumPy")
def test_colab(tmp_path, config):
    """Each notebook alone, with Colab's packages; nbval compares its outputs.

    The repository's address leads to a copy of this one, as it is now.
    """
    copy, python = tmp_path / "repository", str(tmp_path / "venv" / "bin" / "python")
    git = ["git", "--git-dir", copy, "--work-tree", ROOT]
    git += ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgSign=no"]
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    new = [sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"]
    subprocess.run(new, check=True)
    uv = (sys.executable, "-m", "uv", "pip")
    image = ROOT / "tests" / "colab-constraints.txt"
    packages = ("nbval", "pip", "pytest", "-r", image, "-b", image)
    subprocess.run([*uv, "install", "-q", "--python", python, *packages], check=True)
    listing = (*uv, "list", "--format", "freeze", "--python", python)
    before = set(run(*listing).stdout.splitlines())
    env = clean_env(
        tmp_path,
        COLAB_RELEASE_TAG="release-colab",
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.file://{copy}.insteadOf",
        GIT_CONFIG_VALUE_0=config["repository"]["url"],
        PATH=f"{Path(python).parent}:{os.environ['PATH']}",
        PIP_CACHE_DIR=str(Path.home() / ".cache" / "pip"),
    )
    cell = SET_UP[0].replace("300", "3000")  # seconds: this computer may be busy
    done = run(python, "-c", cell, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    # What Colab has is good enough: nothing is replaced, so no restart.
    assert before < set(run(*listing).stdout.splitlines())

    work = tmp_path / "work"
    for source in SOURCES:
        (work / source.stem).mkdir(parents=True)
        shutil.copy(source.with_suffix(".ipynb"), work / source.stem)
    env = clean_env(tmp_path)
    start = "--nbval-kernel-startup-timeout=600"
    nbval = ("--nbval-lax", start, "-p", "no:cacheprovider")
    done = run(python, "-m", "pytest", "-q", *nbval, ".", env=env, cwd=work)
    assert done.returncode == 0, done.stdout[-9000:]
    assert {p.name for p in work.glob("*/*") if p.suffix != ".ipynb"} == {"video"}
    assert not left_behind(env)
    for recording in work.glob("*/video/**/*.mp4"):
        facts, *pictures = read_frames(str(recording), "gray", bits_per_pixel=8)
        assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p")
        assert facts["size"] in {(160, 210), (640, 448)}  # that is Inside's
        speed = len(pictures) / facts["duration"]
        assert min(abs(speed - 15), abs(speed - 30)) < 0.2  # the console's, or twice
        assert len(set(pictures)) > len(pictures) / 2


@linux_only
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_plain_program_with_everything_taken_away(source, tmp_path):
    """On one core (but for Ray), without a screen, with nowhere to write but temporary folders.

    Its output is read as on a Windows terminal, and tests/audit watches it.
    """
    folder, output, log = (tmp_path / name for name in ("here", "output", "log"))
    folder.mkdir()
    to = ["--to", "py:percent", "--output", str(folder / "chapter.py")]
    convert(["--quiet", *to, str(source)])
    fonts = matplotlib.get_cachedir()  # with Matplotlib's list of them
    env = clean_env(
        tmp_path,
        AUDIT_LOG=str(log),
        MPLBACKEND="agg",
        MPLCONFIGDIR=fonts,
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONIOENCODING="cp1252",
    )
    start = read_only(folder) if os.geteuid() == 0 else []
    folder.chmod(0o555)
    core = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cores = sorted(os.sched_getaffinity(0))
    if source.stem != "scale-out":  # on one core, Ray's helpers are late
        start += ["taskset", "--cpu-list", str(cores[core % len(cores)])]
    start += ["env", f"PATH={Path(sys.executable).parent}"]  # neither Xvfb nor xwininfo
    start.append(f"PYTHONPATH={ROOT / 'tests' / 'audit'}")
    command, memory = [*start, sys.executable, "chapter.py"], []
    with open(output, "w") as file:
        how = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        program = psutil.Popen(command, env=env, cwd=folder, **how)
        while program.poll() is None:
            memory.append(0)
            for process in [program, *program.children(recursive=True)]:
                with suppress(psutil.Error):  # it has ended
                    # What processes share counts once.
                    memory[-1] += process.memory_full_info().pss / 2**20
            time.sleep(0.2)
    assert program.returncode == 0, output.read_bytes()[-4000:]
    # What Ray and its players need is more than what a notebook alone needs, and
    # still leaves room for JupyterLab itself in the 2 GB of Binder.
    assert max(memory) < (1600 if source.stem == "scale-out" else 800)
    assert not left_behind(env)
    events = [s.split(" ", 1) for s in log.read_text().splitlines()]
    written = {what for kind, what in events if kind == "write"}
    ray = str(Path("/tmp", "ray-"))  # the paths of Ray's files must be short
    allowed = (str(tmp_path), "/dev/", "/proc/", fonts, ray)
    assert all(path.startswith(allowed) for path in written), written
    assert not any(Path(path).exists() for path in written if path.startswith(ray))
    assert not list((tmp_path / "home").iterdir())
    talked_to = {what for kind, what in events if kind == "connect"}
    # Ray asks a cloud's own address in which cloud it is; the page says so.
    asks = ("('169.254.169.254', 80)",) if source.stem == "scale-out" else ()
    assert all(who.startswith(("('127.0.0.1', ", *asks)) for who in talked_to)


# The first cell


@pytest.mark.parametrize("place", [{}, {"COLAB_RELEASE_TAG": "x"}], ids=len)
def test_without_the_package_one_line_says_what_to_do(tmp_path, config, place):
    """Also in Colab, where git reaches nothing here."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = clean_env(tmp_path, GIT_ALLOW_PROTOCOL="none", PATH=path, **place)
    done = run(sys.executable, "-S", "-c", SET_UP[0], cwd=tmp_path, env=env)
    assert done.returncode == 1
    url = config["repository"]["url"]
    error = f"ImportError: No module named 'pong': (uv) pip install git+{url}"
    assert done.stdout.splitlines()[-1] == error


@linux_only
def test_pip_that_hangs_in_colab_is_ended(tmp_path):
    for name, does in (
        ("pip", "sleep 30 && touch late"),
        ("timeout", '[ "$1" = 300 ] && shift && exec /usr/bin/timeout 1 "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = clean_env(tmp_path, PATH=path, COLAB_RELEASE_TAG="x")
    done = run(sys.executable, "-S", "-c", SET_UP[0], cwd=tmp_path, env=env)
    assert "No module named 'pong': (uv) pip" in done.stdout
    assert not (tmp_path / "late").exists()


# What somebody has set for other programs

HOSTILE = {
    "DISPLAY": ":77", "FORCE_COLOR": "1", "HTTPS_PROXY": "http://127.0.0.1:9",
    "LANG": "C", "LC_ALL": "C", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "x",
    "MPLCONFIGDIR": "/dev/null/nowhere", "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "default", "RAY_ADDRESS": "127.0.0.1:6399",
}  # fmt: skip


@linux_only
def test_inherited_variables_change_nothing(tmp_path):
    """Run the quickest page without and with them; compare texts and pictures."""
    if not str(ROOT).isascii():
        pytest.skip("in the locale C, Python 3.11 does not start in such a folder")
    shown = []
    for changes in ({}, HOSTILE):
        page = nbformat.read(PAGE, 4)
        page.cells.append(nbformat.v4.new_code_cell("plt.plot([0, 1], [1, 0]);"))
        client = NotebookClient(page, coalesce_streams=True)
        client.execute(cwd=str(tmp_path), env=clean_env(tmp_path, **changes))
        shown.append([c.outputs for c in page.cells if c.cell_type == "code"])
    plain, hostile = shown
    assert hostile == plain
    assert "stderr" not in str(plain) and "image/png" in str(plain)


@linux_only
def test_a_user_whom_nobody_knows_and_who_has_no_home(tmp_path):
    """As in some containers; Jupyter itself needs a home, plain programs do not."""
    unknown = ("unshare", "--user", "--map-user=12345")
    if subprocess.run([*unknown, "true"]).returncode:
        pytest.skip("users cannot be mapped here")
    env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    python = (sys.executable, "-I", "-c", "\n".join(SET_UP))
    done = run(*unknown, *python, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "warn" not in done.stdout.lower() and "atplotlib" not in done.stdout
