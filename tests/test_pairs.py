"""A .md notebook, the .ipynb beside it, and the package's module are the same."""

import json
import os
import shutil
import subprocess
import sys
import time
from socket import socket
from urllib.request import Request, urlopen

import nbformat
import pytest

from conftest import CONTENT, SOURCES, every_notebook
from export import module

CHECKED = "nbval-check-output"  # nbval compares the output of these cells
KEPT = "keep_output"  # nbstripout leaves the output of these cells


def test_every_ipynb_and_module_has_its_source():
    notebooks = {path.stem for path in CONTENT.glob("*.ipynb")}
    assert notebooks == {path.stem for path in SOURCES}
    written = {target: text for target, text in map(module, SOURCES) if text}
    package = set((CONTENT / "pong").glob("*.py"))
    assert package == {*written, CONTENT / "pong" / "__init__.py"}
    for target, text in written.items():
        assert target.read_bytes().decode() == text, f"{target}: run `make notebooks`"


def read(path):
    """Return the text of a server's file if it is complete and the server listens."""
    text = path.read_text("utf-8")
    done = text.rstrip().endswith("}")
    with socket() as door:
        closed = done and door.connect_ex(("localhost", json.loads(text)["port"]))
    return text if done and not closed else ""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Start JupyterLab over a copy of the notebooks; return it as a function."""
    root = tmp_path_factory.mktemp("lab")
    for folder in (root, root / "content"):  # as from content/, and from above
        folder.mkdir(exist_ok=True)
        for path in SOURCES:
            shutil.copy(path, folder)
            shutil.copy(path.with_suffix(".ipynb"), folder)
    options = ["--no-browser", "--allow-root", "--ServerApp.port=0"]
    env = {**os.environ, "JUPYTER_RUNTIME_DIR": str(root / "runtime")}
    command = [sys.executable, "-m", "jupyterlab", *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=root, env=env, **quiet) as process:
        end = time.monotonic() + 120
        # The file is there before its text is, and that before the server listens.
        while not (text := "".join(map(read, root.glob("runtime/jpserver-*.json")))):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail("JupyterLab does not start")
            time.sleep(0.1)
        server = json.loads(text)
        headers = {"Authorization": f"token {server['token']}"}

        def ask(path, method="GET", model=None):
            url = f"{server['url']}api/contents/{path.relative_to(root)}?type=notebook"
            data = json.dumps(model).encode() if model else None
            request = Request(url, data, headers, method=method)
            return json.load(urlopen(request, timeout=60))

        ask.root = root
        yield ask
        process.terminate()


@pytest.mark.parametrize("newer", [".md", ".ipynb"])
@pytest.mark.parametrize("folder", [".", "content"])
def test_jupyterlab_opens_and_saves_without_a_change(lab, folder, newer):
    for source in SOURCES:
        md = lab.root / folder / source.name
        pair = (md, md.with_suffix(".ipynb"))
        for opened in pair:
            for path in pair:
                os.utime(path, (0, 1000 * (path.suffix == newer)))
            notebook = lab(opened)["content"]
            # JupyterLab writes down what it calls its kernel.
            notebook["metadata"]["kernelspec"]["display_name"] = "This one"
            lab(opened, "PUT", {"type": "notebook", "content": notebook})
            again = "run `make notebooks`, and if that changes nothing, `make format`"
            assert md.read_text("utf-8") == source.read_text("utf-8"), again
        now, before = (nbformat.read(p.with_suffix(".ipynb"), 4) for p in (md, source))
        assert now.cells == before.cells


@every_notebook
def test_notebook_ran_and_keeps_only_the_outputs_that_are_compared(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))  # from top to bottom
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        checked = CHECKED in tags
        assert checked == (KEPT in tags) == bool(cell.get("outputs")), cell.source
        assert len(str(cell.get("outputs"))) < 5_000, cell.source
    assert any(cell.outputs for cell in code)
