"""A .md notebook, the .ipynb beside it, and the package's module are the same."""

import jupytext
import nbformat
import pytest

from conftest import CONTENT, SOURCES
from export import module

CHECKED = "nbval-check-output"  # nbval compares the output of these cells
KEPT = "keep_output"  # nbstripout leaves the output of these cells


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def pair(request):
    """Return the notebook as the .md has it, and as the .ipynb has it."""
    twin = request.param.with_suffix(".ipynb")
    assert twin.exists(), f"{twin.name} is missing: run `make notebooks`"
    return jupytext.read(request.param), nbformat.read(twin, as_version=4)


def test_every_ipynb_and_module_has_its_source():
    notebooks = {path.stem for path in CONTENT.glob("*.ipynb")}
    assert notebooks == {path.stem for path in SOURCES}
    written = {target: text for target, text in map(module, SOURCES) if text}
    package = set((CONTENT / "pong").glob("*.py"))
    assert package == {*written, CONTENT / "pong" / "__init__.py"}
    for target, text in written.items():
        assert target.read_bytes().decode() == text, (
            f"{target.name} differs, run `make notebooks`"
        )


def test_cells_are_the_same(pair):
    source, notebook = pair
    for number, (a, b) in enumerate(zip(source.cells, notebook.cells)):
        for key in ("cell_type", "source", "metadata"):
            assert a[key] == b[key], (
                f"cell {number}: {key} differs, run `make notebooks`"
            )
    assert len(source.cells) == len(notebook.cells)
    assert source.metadata["kernelspec"] == notebook.metadata["kernelspec"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_saving_the_ipynb_changes_nothing_in_the_md(source, tmp_path):
    """As JupyterLab does where the .ipynb is newer than the .md."""
    notebook = jupytext.read(source.with_suffix(".ipynb"))
    notebook.metadata["jupytext"] = jupytext.read(source).metadata["jupytext"]
    config = jupytext.config.load_jupytext_config(str(source))
    text = jupytext.writes(notebook, fmt="md:myst", config=config)
    assert text == source.read_text(encoding="utf-8"), "run `make format`"


def test_only_compared_outputs_are_committed(pair):
    _, notebook = pair
    nbformat.validate(notebook)
    compared = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        assert (CHECKED in tags) == (KEPT in tags), cell.source
        if cell.cell_type == "code":
            assert bool(cell.outputs) == (CHECKED in tags), cell.source
            assert len(str(cell.outputs)) < 5_000, cell.source
            compared += CHECKED in tags
    assert compared > 0


def test_committed_notebook_ran_from_top_to_bottom(pair):
    _, notebook = pair
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
