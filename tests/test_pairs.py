"""Each .md notebook and the .ipynb beside it are the same notebook."""

import jupytext
import nbformat
import pytest
from conftest import ROOT, SOURCES

CHECKED = "nbval-check-output"  # nbval compares the output of these cells
KEPT = "keep_output"  # nbstripout leaves the output of these cells


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def pair(request):
    """Return the notebook as the .md has it, and as the .ipynb has it."""
    twin = request.param.with_suffix(".ipynb")
    assert twin.exists(), f"{twin.name} is missing: run `make notebooks`"
    return jupytext.read(request.param), nbformat.read(twin, as_version=4)


def test_every_ipynb_has_its_source():
    notebooks = {path.stem for path in (ROOT / "content").glob("*.ipynb")}
    assert notebooks == {path.stem for path in SOURCES}
    assert SOURCES


def test_cells_are_the_same(pair):
    source, notebook = pair
    for number, (a, b) in enumerate(zip(source.cells, notebook.cells)):
        for key in ("cell_type", "source", "metadata"):
            assert a[key] == b[key], (
                f"cell {number}: {key} differs, run `make notebooks`"
            )
    assert len(source.cells) == len(notebook.cells)


def test_settings_are_the_same(pair):
    source, notebook = pair
    for key in ("kernelspec", "mystnb"):
        assert source.metadata.get(key) == notebook.metadata.get(key)


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
