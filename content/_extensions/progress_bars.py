"""Sphinx extension: show the last state of a progress bar, as terminals do.

MyST-NB joins the pieces of a stream with line breaks, so that each update of a
progress bar gets a line of its own. nbconvert joins them as they came, and
obeys the carriage returns.
"""

from myst_nb.core import render
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat.v4 import new_code_cell


def coalesce_streams(outputs):
    """Return the outputs of a cell with the pieces of each stream joined.

    Parameters
    ----------
    outputs : list of nbformat.NotebookNode

    Returns
    -------
    list of nbformat.NotebookNode
    """
    cell = new_code_cell(outputs=outputs)
    cell, _ = CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
    return cell.outputs


def setup(app):
    """Put `coalesce_streams` in the place of MyST-NB's own function."""
    render.coalesce_streams = coalesce_streams
    return {"parallel_read_safe": True, "parallel_write_safe": True}
