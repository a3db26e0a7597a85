"""A .md notebook, the .ipynb beside it, and the package's module are the same."""

import jupytext
import nbformat
import pytest

from conftest import CONTENT, SOURCES
from export import module

CHECKED = "nbval-check-output"  # nbval compares the output of these cells
KEPT = "keep_output"  # nbstripout leaves the output of these cells


every_notebook = pytest.mark.parametrize(
    "source", SOURCES, ids=lambda path: path.stem
)


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


@every_notebook
def test_saving_the_ipynb_changes_nothing_in_the_md(source):
    """As JupyterLab does where the .ipynb is newer than the .md."""
    notebook = jupytext.read(source.with_suffix(".ipynb"))
    notebook.metadata["jupytext"] = jupytext.read(source).metadata["jupytext"]
    config = jupytext.config.load_jupytext_config(str(source))
    text = jupytext.writes(notebook, fmt="md:myst", config=config)
    assert text == source.read_text(encoding="utf-8"), (
        "run `make notebooks`, and if that changes nothing, `make format`"
    )


@every_notebook
def test_notebook_ran_and_keeps_only_the_outputs_that_are_compared(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # From top to bottom.
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        assert (CHECKED in tags) == (KEPT in tags), cell.source
        outputs = cell.get("outputs", [])
        assert bool(outputs) == (CHECKED in tags), cell.source
        assert len(str(outputs)) < 5_000, cell.source
    assert any(cell.outputs for cell in code)
