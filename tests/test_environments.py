"""The notebooks where the readers are: Colab, Binder, servers, small machines."""

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import numpy as np
import psutil
import pytest
from conftest import ROOT, SOURCES, check_video, notebook_functions
from packaging.requirements import Requirement
from PIL import Image
from test_project import TOOLS, direct

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


@pytest.fixture(scope="module")
def page():
    """Return the functions of the page on videos."""
    return notebook_functions(ROOT / "content" / "video-playback.md")


def clean_environment(tmp_path, **changes):
    """Return an environment without a screen, and with a home of its own."""
    home, tmp = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, tmp):
        folder.mkdir(exist_ok=True)
    unwanted = (
        "DISPLAY", "JUPYTER", "OPENBLAS", "PONG_DISPLAY", "PYTHON", "WAYLAND",
        "XDG",
    )  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    return {
        **env,
        "HOME": str(home),
        "TMPDIR": str(tmp),
        "PONG_BUDGET": "5",  # seconds of training: it is the place that matters
        "PYTHONUTF8": "1",
        **changes,
    }


def run_alone(notebook, folder, env, python=sys.executable, prefix=()):
    """Execute a copy of a notebook in a folder that holds nothing else of ours."""
    folder.mkdir(exist_ok=True)
    copy = folder / notebook.name
    if not copy.exists():
        shutil.copy(notebook, copy)
    output = Path(env["HOME"]) / "executed"
    command = [
        *prefix, python, "-c", MEASURE, python, "-m", "nbconvert", "--execute",
        "--to", "notebook", "--output-dir", str(output), str(copy),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=env,
        cwd=Path(env["HOME"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-4000:]
    cells = nbformat.read(output / copy.name, as_version=4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    kinds = [o.get("name", o.output_type) for o in outputs]
    assert "stderr" not in kinds, [
        o.text for o in outputs if o.get("name") == "stderr"
    ]
    return SimpleNamespace(
        report=next(o.text for o in outputs if o.get("name") == "stdout"),
        html="".join(o.get("data", {}).get("text/html", "") for o in outputs),
        peak_mb=float(re.search(r"peak MB ([\d.]+)", done.stdout)[1]),
        all_mb=float(re.search(r"all MB ([\d.]+)", done.stdout)[1]),
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


# The set-up cell


def set_up_cells():
    return {
        source.name: next(
            cell
            for cell in jupytext.read(source).cells
            if cell.cell_type == "code"
        )
        for source in SOURCES
    }


def test_set_up_cell_is_the_same_everywhere_and_folded():
    cells = set_up_cells()
    assert len({cell.source for cell in cells.values()}) == 1
    for cell in cells.values():
        assert "hide-input" in cell.metadata["tags"]


def test_set_up_asks_for_what_the_lock_is_made_from(page):
    (source,) = {cell.source for cell in set_up_cells().values()}
    listed = re.search(r"REQUIREMENTS = (\(.*?\n\))", source, re.DOTALL)[1]
    listed = {r.name: r for r in map(Requirement, eval(listed))}
    required = direct("requirements.in")
    # packaging does the comparison; Jupyter itself needs it. Ray is for one
    # chapter, which asks for it in its second cell.
    others = (TOOLS - {"moviepy"}) | {"packaging", "ray"}
    assert set(listed) == set(required) - others
    for name, requirement in listed.items():
        assert str(requirement.specifier) in str(required[name].specifier)


def test_missing_packages(page):
    assert page.missing_packages(["numpy>=2.1", "tqdm>=4"]) == []
    wanted = ["numpy>=99", "no-such-package>=1", "tqdm>=4"]
    assert page.missing_packages(wanted) == wanted[:2]


def test_outside_colab_the_set_up_only_names_the_command(page, monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(RuntimeError) as caught:
        page.install(["tqdm>=4", "no-such-package>=1"])
    message = str(caught.value)
    assert "Missing: tqdm>=4, no-such-package>=1" in message
    assert f"{sys.executable} -m pip install" in message
    assert "'no-such-package>=1'" in message


def test_in_colab_numpy_stays_as_it_is(page, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setattr(subprocess, "run", run)
    page.install(["tqdm>=4"])
    ((*command, tqdm, numpy),) = commands
    assert command == [sys.executable, "-m", "pip", "install", "--quiet"]
    assert (tqdm, numpy) == ("tqdm>=4", f"numpy=={np.__version__}")


def test_a_failed_installation_says_why(page, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="no-such-package"):
        page.install(["no-such-package>=1"])


@linux_only
@pytest.mark.parametrize(
    ("env", "report"),
    [
        ({"DISPLAY": ":99"}, "your own screen"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "your own screen"),
        ({"PATH": "/nowhere"}, "no screen and no Xvfb"),
        ({}, "virtual screen :"),
    ],
)
def test_screen_is_started_only_where_there_is_none(tmp_path, env, report):
    script = tmp_path / "script.py"
    source = next(iter(set_up_cells().values())).source
    script.write_text(
        source
        + "\nimport os\nbefore = os.environ.get('DISPLAY')"
        + "\nprint(start_virtual_display())"
        + "\nprint(os.environ.get('DISPLAY') == before)"
        + "\nprint(os.environ['OPENBLAS_NUM_THREADS'])\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env=clean_environment(tmp_path, **env),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    ready, again, same, threads = done.stdout.splitlines()
    assert ready.startswith("Ready. Packages: complete. Display: ")
    assert report in ready
    assert again in ready  # the second call finds what the first has started
    assert same == "True"
    assert threads == "1"


def test_a_screen_that_does_not_start_stops_nothing(
    page, tmp_path, monkeypatch
):
    if not LINUX:
        pytest.skip("Xvfb is for Linux")
    broken = tmp_path / "Xvfb"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PONG_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "Xvfb did not start" in page.start_virtual_display()
    assert "PONG_DISPLAY" not in os.environ


def test_videos_go_where_one_may_write(page, tmp_path):
    folder = str(tmp_path / "video")
    assert page.writable_folder(folder) == folder
    assert page.writable_folder(folder) == folder
    (tmp_path / "file").touch()
    other = page.writable_folder(str(tmp_path / "file" / "video"))
    assert os.path.isdir(other)
    os.rmdir(other)


# Whole notebooks


def core():
    """Return a processor core that no other such test uses at the same time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    cores = sorted(os.sched_getaffinity(0))
    return cores[int(worker.removeprefix("gw")) % len(cores)]


def check_recordings(run, folder, start, old):
    """Check that the page plays what its run has recorded since the start."""
    recordings = set((folder / "video").iterdir())
    recordings.remove(folder / "video" / old)
    assert recordings
    for recording in recordings:
        assert recording.stat().st_mtime > start
        assert len(check_video(recording)) > 700
        video = base64.b64encode(recording.read_bytes()).decode()
        assert video in "".join(run.html.split())


def read_only(folder):
    """Make a folder read-only, also for root, who may write everywhere.

    Parameters
    ----------
    folder : pathlib.Path

    Returns
    -------
    list of str
        The start of the commands for which it is read-only.
    """
    if os.geteuid() != 0:
        folder.chmod(0o555)
        return []
    script = (
        f"mount --bind {folder} {folder} && "
        f'mount -o remount,bind,ro {folder} && exec "$@"'
    )
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("mounting is not allowed here")
    return prefix


@linux_only
@every_notebook
def test_one_core_nowhere_to_write_then_offline_over_an_older_run(
    notebook, tmp_path
):
    """Run twice; the second run is watched by tests/audit."""
    env = clean_environment(tmp_path)
    folder = tmp_path / "read-only"
    folder.mkdir()
    shutil.copy(notebook, folder)
    one_core = ["taskset", "--cpu-list", str(core())]
    run = run_alone(
        notebook, folder, env, prefix=[*one_core, *read_only(folder)]
    )
    assert run.peak_mb < 1000
    assert run.all_mb < ALL_MB.get(notebook.stem, 1000)
    assert "virtual screen" in run.report
    assert str(tmp_path / "tmp") in run.report
    assert "data:video/mp4" in run.html
    assert [path.name for path in folder.iterdir()] == [notebook.name]
    assert not left_behind(env)

    # An older run has left files, one of which the new run does not replace.
    recordings = list((tmp_path / "tmp").glob("video-*/*.mp4"))
    assert recordings
    folder, log = tmp_path / "work", tmp_path / "log"
    (folder / "video").mkdir(parents=True)
    for path in (Path("of-an-older-run.mp4"), *recordings):
        old = folder / "video" / path.name
        old.write_bytes(b"old")
        os.utime(old, (0, 0))
    env |= {
        "PATH": str(Path(sys.executable).parent),  # neither Xvfb nor xwininfo
        "PYTHONPATH": str(ROOT / "tests" / "audit"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AUDIT_LOG": str(log),
    }
    start = time.time()
    run = run_alone(notebook, folder, env)
    assert run.peak_mb < 1000
    assert "no screen and no Xvfb" in run.report
    check_recordings(run, folder, start, "of-an-older-run.mp4")
    assert {p.name for p in folder.iterdir()} == {notebook.name, "video"}
    events = [s.split(" ", 1) for s in log.read_text().splitlines()]
    written = {what for kind, what in events if kind == "write"}
    assert any(path.endswith(".ipynb") for path in written)
    elsewhere = {
        path
        for path in written
        if not Path(path).is_relative_to(tmp_path)
        and not path.startswith(("/dev/", "/proc/", RAY_FILES))
    }
    assert elsewhere == set()
    assert not any(  # Ray's folder is gone
        Path(path).exists() for path in written if path.startswith(RAY_FILES)
    )
    talked_to = {what for kind, what in events if kind == "connect"}
    allowed = ("('127.0.0.1', ", *ASKS.get(notebook.stem, ()))
    assert all(what.startswith(allowed) for what in talked_to), talked_to


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Return a Python with the packages that Colab has, as it has them."""
    if not LINUX or sys.version_info >= (3, 14):
        pytest.skip(
            "Colab is Linux with Python 3.13; its NumPy fits up to that"
        )
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    constraints = ROOT / "tests" / "colab-constraints.txt"
    packages = [
        line.split("==")[0]
        for line in constraints.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "nbconvert",
        *packages,
    ]
    subprocess.run([*command, "--constraint", str(constraints)], check=True)
    return python


def versions(python):
    done = subprocess.run(
        [python, "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("==") for line in done.stdout.splitlines())


@every_notebook
def test_colab(notebook, tmp_path, colab):
    """Each notebook alone, with Colab's packages; the first one adds some."""
    # A package that is absent, and one that is too old.
    remove = [colab, "-m", "pip", "uninstall", "--quiet", "--yes"]
    subprocess.run([*remove, "pyvirtualdisplay"], check=True)
    old = [colab, "-m", "pip", "install", "--quiet", "tqdm==4.65.0"]
    subprocess.run(old, check=True)
    before = versions(colab)
    assert "PyVirtualDisplay" not in before

    env = clean_environment(tmp_path, COLAB_RELEASE_TAG="release-colab")
    run = run_alone(notebook, tmp_path / "work", env, python=colab)
    assert "added pyvirtualdisplay>=3, tqdm>=4.66" in run.report
    after = versions(colab)
    changed = {k for k in before if before[k] != after.get(k)}
    assert changed == {"tqdm"}
    assert after["numpy"] == "2.1.3"
    assert after["moviepy"] == "1.0.3"
    names = {p.name for p in (tmp_path / "work").iterdir()}
    assert names == {notebook.name, "video"}
    for recording in (tmp_path / "work" / "video").iterdir():
        check_video(recording)

    # Complete now: the set-up cell adds nothing, so it needs no network either.
    script = tmp_path / "script.py"
    script.write_text(
        set_up_cells()[notebook.with_suffix(".md").name].source,
        encoding="utf-8",
    )
    done = subprocess.run(
        [colab, str(script)],
        env={**env, "PIP_NO_INDEX": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "Packages: complete" in done.stdout, done.stderr


@every_notebook
def test_plain_program(notebook, tmp_path):
    """Run the chapter with the commands of README.md."""
    env = clean_environment(tmp_path, MPLBACKEND="agg")
    source = notebook.with_suffix(".md")
    script = tmp_path / "pong.py"
    jupytext_command = [sys.executable, "-m", "jupytext", "--to", "py:percent"]
    for command in (
        [*jupytext_command, str(source), "--output", str(script)],
        [sys.executable, str(script)],
    ):
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    recordings = list((tmp_path / "video").iterdir())
    assert recordings
    for recording in recordings:
        check_video(recording)


# The page on videos


def test_recorder_loses_no_picture(page, tmp_path):
    n_pictures = page.record_game(str(tmp_path / "video"), "game", seed=4)
    (path,) = (tmp_path / "video").iterdir()
    assert len(check_video(path)) == n_pictures
    facts = page.video_facts(path)
    assert facts["pictures"] == n_pictures
    assert (facts["codec"], facts["pixel_format"]) == ("h264", "yuv420p")


def fake_video(path, when):
    path.write_bytes(b"\0\0\0\x18ftypisom" + path.name.encode() + b"moov")
    os.utime(path, (when, when))


def test_any_video_can_be_shown(page, tmp_path):
    for number, name in enumerate(("b", "c", "a & <b>")):
        fake_video(tmp_path / f"{name}.mp4", 1000 + number)
    for index, name in ((0, "b"), (1, "c"), (2, "a & <b>"), (-1, "a & <b>")):
        shown = page.show_any_video(index, tmp_path).data
        data = (tmp_path / f"{name}.mp4").read_bytes()
        assert base64.b64encode(data).decode() in shown
        assert page.html.escape(name) in shown
        assert "<b>" not in shown
        for word in (
            "controls",
            "muted",
            "loop",
            'height="400"',
            "aria-label",
        ):
            assert word in shown
    assert (
        page.show_any_video(folder=tmp_path).data
        == page.show_any_video(0, tmp_path).data
    )


def test_a_video_that_is_not_there_gets_a_clear_error(page, tmp_path):
    with pytest.raises(FileNotFoundError, match="no MP4 file; record"):
        page.show_any_video(0, tmp_path)
    with pytest.raises(FileNotFoundError, match="no MP4 file; record"):
        page.show_any_video(0, tmp_path / "nowhere")
    fake_video(tmp_path / "one.mp4", 1000)
    fake_video(tmp_path / "two.mp4", 2000)
    for index in (2, -3, 99):
        with pytest.raises(IndexError, match=r"0: one\.mp4, 1: two\.mp4"):
            page.show_any_video(index, tmp_path)
    for data in (b"", b"text", b"\0\0\0\x18ftypisom"):
        (tmp_path / "two.mp4").write_bytes(data)
        with pytest.raises(ValueError, match=r"two\.mp4: not a complete MP4"):
            page.show_any_video(-1, tmp_path)


@linux_only
def test_picture_proves_that_the_window_was_open(tmp_path):
    notebook = ROOT / "content" / "video-playback.ipynb"
    env = clean_environment(tmp_path)
    run_alone(notebook, tmp_path / "work", env)
    executed = Path(env["HOME"]) / "executed" / notebook.name
    outputs = [
        output
        for cell in nbformat.read(executed, as_version=4).cells
        for output in cell.get("outputs", [])
    ]
    texts = "".join(o.get("text", "") for o in outputs)
    assert "Open on the virtual screen: The Arcade Learning Env" in texts
    (picture,) = (
        o.data["image/png"]
        for o in outputs
        if "image/png" in o.get("data", {})
    )
    image = np.asarray(Image.open(BytesIO(base64.b64decode(picture))))
    assert image.shape == (300, 400, 3)
    colors = {tuple(c) for c in image.reshape(-1, 3)}
    for color in ((144, 72, 17), (92, 186, 92), (213, 130, 74)):
        assert color in colors  # the court and both paddles


def test_page_explains_every_line(page):
    text = (ROOT / "content" / "video-playback.md").read_text(encoding="utf-8")
    apt = (ROOT / "apt.txt").read_text(encoding="utf-8").splitlines()
    for package in (line for line in apt if line and line[0] != "#"):
        assert f"| `apt.txt`: `{package}` |" in text
    conda = (ROOT / "environment.yml").read_text(encoding="utf-8")
    lines = re.findall(r"^ *(?:- )?([\w-][\w .-]*)", conda, re.MULTILINE)
    for name in {line.split("=")[0].strip() for line in lines}:
        if name not in (
            "pong-from-pixels",
            "conda-forge",
            "nodefaults",
            "dependencies",
        ):
            assert f"| `environment.yml`: `{name}` |" in text, name
    for path in (ROOT / "binder").iterdir():
        if not path.is_symlink():
            assert f"| `{path.name}` |" in text
    source = next(iter(set_up_cells().values())).source
    for name in re.findall(r"^def (\w+)", source, re.MULTILINE):
        assert f"| `{name}` |" in text
