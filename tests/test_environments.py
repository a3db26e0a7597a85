"""The notebooks where the readers are: Colab, Binder, servers, small machines."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import psutil
import pytest

from conftest import CONTENT, ROOT, SOURCES, check_video

NOTEBOOKS = [path.with_suffix(".ipynb") for path in SOURCES]
LINUX = sys.platform.startswith("linux")
# Runs a command, and prints in MB the memory of its largest process, and of all
# together at the same time, where what they share counts once.
MEASURE = """
import resource, subprocess, sys, time
import psutil
child, most = subprocess.Popen(sys.argv[1:]), 0
while child.poll() is None:
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            pass  # it has ended
    most = max(most, total)
    time.sleep(1)
print("peak MB", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
print("all MB", most / 2**20)
sys.exit(child.returncode)
"""
# What Ray and its players need is more than what a notebook alone needs, and
# still leaves room for JupyterLab itself in the 2 GB of Binder.
ALL_MB = {"scale-out": 1600}
# Ray asks a cloud's own address in which cloud it is; the page says so.
ASKS = {"scale-out": ("('169.254.169.254', 80)",)}
# Where the page lets Ray write, since its paths must be short.
RAY_FILES = str(Path("/tmp", "ray-"))

linux_only = pytest.mark.skipif(not LINUX, reason="a Linux server is meant")
every_notebook = pytest.mark.parametrize(
    "notebook", NOTEBOOKS, ids=lambda path: path.stem
)


def clean_environment(tmp_path, **changes):
    """Return an environment without a screen, and with a home of its own."""
    home, tmp = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, tmp):
        folder.mkdir(exist_ok=True)
    unwanted = (
        "DISPLAY", "GIT", "JUPYTER", "OPENBLAS", "PONG_DISPLAY", "PYTHON",
        "WAYLAND", "XDG",
    )  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    return {
        **env,
        "HOME": str(home),
        "TMPDIR": str(tmp),
        "PONG_BUDGET": "5",  # seconds of training: it is the place that matters
        **changes,
    }


def run(*command, **options):
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        **options,
    )


def left_behind(env):
    """Return the processes that still run in an environment, after a while."""
    deadline = time.monotonic() + 20
    while True:
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == env["HOME"]:
                    left.append(" ".join(process.cmdline()))
            except psutil.Error:
                pass  # it has ended, or belongs to somebody else
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def first_cell():
    """Return the cell that every notebook begins with."""
    cells = jupytext.read(CONTENT / "set-up.md").cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


# The first cell


def test_without_the_package_one_line_says_what_to_do(tmp_path, config):
    done = run(sys.executable, "-S", "-c", first_cell(), cwd=tmp_path)
    assert done.returncode == 1
    url = config["repository"]["url"]
    assert done.stdout.splitlines()[-1] == (
        f"ImportError: Missing package: (uv) pip install git+{url}"
    )


def test_in_colab_without_a_network_the_same_line(tmp_path, config):
    env = clean_environment(tmp_path, COLAB_RELEASE_TAG="x", PIP_NO_INDEX="1")
    empty = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(empty))
    python = next(empty.glob("[bS]*/python*"))
    done = run(str(python), "-c", first_cell(), cwd=tmp_path, env=env)
    assert done.stdout.splitlines()[-1].startswith("ImportError: Missing pack")


def test_notebook_and_package_of_different_versions_say_so():
    source = first_cell().replace('set_up("', 'set_up("0.')
    done = run(sys.executable, "-c", source, cwd=CONTENT)
    last = done.stdout.splitlines()[-1]
    asked, here = re.findall(r"version (\S+?)[. ,]* ?(?:of|Take)", last)
    assert last.startswith("ImportError: ") and asked == f"0.{here}"


# Whole notebooks


def read_only(folder):
    """Return the start of commands for which a folder is read-only, as for a reader.

    Root may write everywhere, so a file system is mounted for it.
    """
    if os.geteuid() != 0:
        folder.chmod(0o555)
        return []
    script = (
        f"mount --bind {folder} {folder} && "
        f'mount -o remount,bind,ro {folder} && cd {folder} && exec "$@"'
    )
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("mounting is not allowed here")
    return prefix


@linux_only
@every_notebook
def test_plain_program_with_everything_taken_away(notebook, tmp_path):
    """On one core, without a screen, with nowhere to write but temporary folders.

    Its output is read as on a Windows terminal, and tests/audit watches it.
    """
    log = tmp_path / "log"
    folder = tmp_path / "read-only"
    folder.mkdir()
    script = folder / "chapter.py"
    source = str(notebook.with_suffix(".md"))
    done = run(
        *(sys.executable, "-m", "jupytext", "--to", "py:percent", source),
        *("--output", str(script)),
    )
    assert done.returncode == 0, done.stdout
    env = clean_environment(
        tmp_path,
        AUDIT_LOG=str(log),
        MPLBACKEND="agg",
        PATH=str(Path(sys.executable).parent),  # neither Xvfb nor xwininfo
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONIOENCODING="cp1252",
        PYTHONPATH=str(ROOT / "tests" / "audit"),
    )
    core = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    cores = sorted(os.sched_getaffinity(0))
    os_tools = {"PATH": os.environ["PATH"], "PYTHONPATH": ""}
    passed_on = [f"{k}={env[k]}" for k in os_tools]
    done = run(
        *(*read_only(folder), "taskset", "--cpu-list"),
        *(str(cores[int(core) % len(cores)]), sys.executable, "-c", MEASURE),
        *("env", *passed_on, sys.executable, str(script)),
        env=env | os_tools,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    peak, together = map(float, re.findall(r"MB ([\d.]+)", done.stdout)[-2:])
    assert peak < 1000
    assert together < ALL_MB.get(notebook.stem, 1000)
    assert [path.name for path in folder.iterdir()] == ["chapter.py"]
    assert not left_behind(env)
    for recording in (tmp_path / "tmp").glob("video-*/*.mp4"):
        check_video(recording)
    events = [s.split(" ", 1) for s in log.read_text().splitlines()]
    written = {what for kind, what in events if kind == "write"}
    assert not {
        path
        for path in written
        if not Path(path).is_relative_to(tmp_path)
        and not path.startswith(("/dev/", "/proc/", RAY_FILES))
    }
    # Matplotlib's list of fonts, as everywhere, and nothing else.
    at_home = tmp_path / "home"
    fonts = {at_home / folder for folder in (".cache", ".config")}
    assert set(at_home.iterdir()) <= fonts
    for folder in fonts & set(at_home.iterdir()):
        assert [path.name for path in folder.iterdir()] == ["matplotlib"]
    assert not any(  # Ray's folder is gone
        Path(path).exists() for path in written if path.startswith(RAY_FILES)
    )
    talked_to = {what for kind, what in events if kind == "connect"}
    allowed = ("('127.0.0.1', ", *ASKS.get(notebook.stem, ()))
    assert all(what.startswith(allowed) for what in talked_to), talked_to


def versions(python):
    done = subprocess.run(
        [python, "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("==") for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def colab(tmp_path_factory, config):
    """Return a Python as in Colab, after the first cell has run in it.

    The repository's address leads to a copy of this one, as it is now.
    """
    if not LINUX or sys.version_info >= (3, 14):
        pytest.skip("Colab is Linux with Python 3.13; its NumPy ends there")
    folder = tmp_path_factory.mktemp("colab")
    copy = folder / "repository"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv", "_build", "video", "checkpoints", "__pycache__"
        ),
    )
    for command in (
        ("init", "--quiet"),
        ("add", "--all"),
        ("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"),
    ):
        subprocess.run(["git", *command], cwd=copy, check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = str(folder / "venv" / "bin" / "python")
    constraints = str(ROOT / "tests" / "colab-constraints.txt")
    uv = [sys.executable, "-m", "uv", "pip", "install", "--python", python]
    tools = ["nbval", "pytest", "nbconvert"]
    subprocess.run(
        [*uv, "-q", *tools, "-r", constraints, "-c", constraints], check=True
    )
    before = versions(python)
    env = clean_environment(
        folder,
        COLAB_RELEASE_TAG="release-colab",
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.file://{copy}.insteadOf",
        GIT_CONFIG_VALUE_0=config["repository"]["url"],
    )
    done = run(python, "-c", first_cell(), env=env, cwd=folder)
    assert done.returncode == 0, done.stdout
    after = versions(python)
    # What Colab has is good enough: nothing is replaced, so no restart.
    assert {k: after[k] for k in before} == before
    added = {name.lower() for name in set(after) - set(before)}
    assert {"pong-from-pixels", "pyvirtualdisplay"} <= added
    return SimpleNamespace(python=python, env=env)


@linux_only
@every_notebook
def test_colab(notebook, tmp_path, colab):
    """Each notebook alone, with Colab's packages; nbval compares its outputs."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(notebook, work)
    env = clean_environment(tmp_path)
    done = run(
        *(colab.python, "-m", "pytest", "--nbval-lax", "-q", "-p"),
        *("no:cacheprovider", "--nbval-cell-timeout=300", notebook.name),
        env=env,
        cwd=work,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert {p.name for p in work.iterdir()} <= {notebook.name, "video"}
    for recording in work.glob("video/*.mp4"):
        check_video(recording)
    assert not left_behind(env)


# What somebody has set for other programs

HOSTILE = {
    "DISPLAY": ":77",
    "FORCE_COLOR": "1",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "JUPYTER_PREFER_ENV_PATH": "0",
    "LANG": "C",
    "LC_ALL": "C",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": "/dev/null/nowhere",
    "OMP_NUM_THREADS": "x",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "default",
    "RAY_ADDRESS": "127.0.0.1:6399",
}


@linux_only
def test_inherited_variables_change_nothing(tmp_path):
    """Run the quickest page without and with them; compare texts and pictures."""
    pages = []
    for name, changes in (("plain", {}), ("hostile", HOSTILE)):
        folder = tmp_path / name
        folder.mkdir()
        env = clean_environment(folder, **changes)
        pages.append(run_page(folder, env))
    plain, hostile = pages
    assert hostile == plain


@linux_only
def test_a_user_whom_nobody_knows_and_who_has_no_home(tmp_path):
    """As in some containers; Jupyter itself needs a home, plain programs do not."""
    unknown = ("unshare", "--user", "--map-user=12345")
    if subprocess.run([*unknown, "true"]).returncode:
        pytest.skip("users cannot be mapped here")
    cells = jupytext.read(CONTENT / "set-up.md").cells
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    python = (sys.executable, "-I", "-c", code)
    done = run(*unknown, *python, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "warn" not in done.stdout.lower() and "atplotlib" not in done.stdout


def run_page(folder, env):
    """Return the outputs of the page on the set-up, with a picture drawn at its end."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    notebook = nbformat.read(CONTENT / "set-up.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("plt.plot([0, 1], [1, 0]);"))
    nbformat.write(notebook, work / "page.ipynb")
    done = run(
        *(sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook"),
        *("--inplace", str(work / "page.ipynb")),
        env=env,
        cwd=work,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    cells = nbformat.read(work / "page.ipynb", as_version=4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    kinds = [o.get("name", o.output_type) for o in outputs]
    assert "stderr" not in kinds, outputs
    shown = [o.get("text") or dict(o.get("data", {})) for o in outputs]
    assert any("image/png" in data for data in shown)
    return shown
