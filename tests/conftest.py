"""What the tests share: the project's files, the notebooks' functions, the book."""

import ast
import importlib.util
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

# As the set-up cell of the notebooks does, before NumPy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jupytext
import pytest
import yaml
from imageio_ffmpeg import count_frames_and_secs, read_frames
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for path in (ROOT / "content").glob("*.md")
    if path.read_text(encoding="utf-8").startswith("---\njupytext:")
)


def notebook_functions(source):
    """Return what a notebook's import statements, functions and classes define.

    Parameters
    ----------
    source : pathlib.Path
        The .md file of the notebook.

    Returns
    -------
    types.SimpleNamespace

    Notes
    -----
    No other statement of the notebook runs, so a function that reads one of
    the notebook's variables fails here with a NameError.
    """
    namespace = {"__name__": source.stem}
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for cell in jupytext.read(source).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            tree.body = [node for node in tree.body if isinstance(node, kinds)]
            exec(compile(tree, str(source), "exec"), namespace)
    ale_py = namespace["ale_py"]
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    namespace["gym"].register_envs(ale_py)
    return SimpleNamespace(**namespace)


def notebook_value(source, name):
    """Return a literal that a cell of a notebook assigns, such as its settings.

    Parameters
    ----------
    source : pathlib.Path
        The .md file of the notebook.
    name : str

    Returns
    -------
    object

    Raises
    ------
    KeyError
        If no cell assigns it.
    """
    for cell in jupytext.read(source).cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and name in (
                    getattr(target, "id", None) for target in node.targets
                ):
                    return ast.literal_eval(node.value)
    raise KeyError(name)


def definitions(source):
    """Return the functions and classes of a notebook as syntax trees.

    Parameters
    ----------
    source : pathlib.Path
        The .md file of the notebook.

    Returns
    -------
    dict of str to str
        Two of them are equal if only comments and layout differ.
    """
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {
        node.name: ast.dump(node)
        for cell in jupytext.read(source).cells
        if cell.cell_type == "code"
        for node in ast.parse(cell.source).body
        if isinstance(node, kinds)
    }


class SideBySide(LoadScopeScheduling):
    """Runs tests at the same time, but for those that share something."""

    def _split_scope(self, nodeid):
        """Return the name of a group of tests that run one after the other.

        Parameters
        ----------
        nodeid : str
            Such as "tests/test_book.py::test_title".

        Returns
        -------
        str
        """
        path, _, name = nodeid.partition("::")
        file = path.removeprefix("tests/").removesuffix(".py")
        # They build the book, read it, or write videos beside the notebooks.
        if path.startswith("content/") or file in (
            "test_book",
            "test_browser",
        ):
            return "book"
        # Whole notebooks, each in a folder of its own. Of Colab's packages,
        # which come and go, there is one set.
        if file == "test_environments" and "[" in name:
            return "colab" if name.startswith("test_colab") else name
        return file


@pytest.hookimpl(optionalhook=True)  # also without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Tell pytest-xdist which tests must not run at the same time."""
    return SideBySide(config, log)


@pytest.fixture(scope="session")
def chapter():
    """Return the functions of the first chapter."""
    return notebook_functions(ROOT / "content" / "pong-from-pixels.md")


@pytest.fixture(scope="session")
def record():
    """Return the program that records the results."""
    place = ROOT / "content" / "data" / "record.py"
    spec = importlib.util.spec_from_file_location("record", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def config():
    """Return the settings of the book."""
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def check_video(path):
    """Decode a recording of Pong, check it, and return its pictures.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    list of bytes
        RGB, each with the pixels of the screen, 160 × 210, or of the video of
        "Inside the agent", 640 × 448.
    """
    n_pictures, seconds = count_frames_and_secs(str(path))
    # The speed of the console, or twice that.
    assert min(abs(seconds - n_pictures / fps) for fps in (15, 30)) < 0.2
    reader = read_frames(str(path))
    facts = next(reader)
    assert facts["codec"] == "h264"
    assert facts["pix_fmt"].startswith("yuv420p")
    assert facts["size"] in {(160, 210), (640, 448)}
    pictures = list(reader)
    assert len(pictures) == n_pictures
    assert len(set(pictures)) > n_pictures / 2
    return pictures


def build_book():
    """Build the book with the command of the README; return its folder and log."""
    done = subprocess.run(
        ["make", "book"],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": "", "BUDGET": "quick"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return SimpleNamespace(html=ROOT / "_build" / "html", log=done.stdout)


@pytest.fixture(scope="session")
def book():
    """Return the HTML folder of the book, built now, and the log of the build."""
    return build_book()
