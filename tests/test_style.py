"""How the notebooks are written: short cells, pure functions, said in words."""

import ast
import builtins
import dis
import inspect

import jupytext
import pytest
from conftest import SOURCES, notebook_functions

every_notebook = pytest.mark.parametrize(
    "source", SOURCES, ids=lambda path: path.stem
)


def code_cells(source):
    cells = jupytext.read(source).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def functions(cell):
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n for n in ast.parse(cell.source).body if isinstance(n, kinds)]


@every_notebook
def test_functions_read_no_variable_of_the_notebook(source):
    def global_names(code):
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_GLOBAL":
                yield instruction.argval
            elif inspect.iscode(instruction.argval):
                yield from global_names(instruction.argval)

    defined = notebook_functions(source)
    own = [
        value
        for value in vars(defined).values()
        if inspect.isfunction(value) and value.__module__ == source.stem
    ]
    assert len(own) >= 5
    for function in own:
        # A context manager is wrapped in a function of contextlib.
        for name in global_names(inspect.unwrap(function).__code__):
            value = getattr(defined, name, getattr(builtins, name, None))
            assert callable(value) or inspect.ismodule(value), (
                f"{function.__name__} reads the variable {name}"
            )


@every_notebook
def test_every_function_says_what_it_takes_and_returns(source):
    for cell in code_cells(source):
        for node in functions(cell):
            doc = ast.get_docstring(node)
            assert doc, node.name
            if "hide-cell" in tags(cell) or isinstance(node, ast.ClassDef):
                continue  # the solution of an exercise, or a record
            inside = list(ast.walk(node))
            returns = any(
                isinstance(n, ast.Return) and n.value for n in inside
            )
            raises = any(isinstance(n, ast.Raise) for n in inside)
            for needed, section in (
                (node.args.args, "Parameters\n-----"),
                (returns, "Returns\n-----"),
                (raises, "Raises\n---"),
            ):
                assert not needed or section in doc, (node.name, section)
            for argument in node.args.args:
                assert argument.arg in doc, (node.name, argument.arg)


@every_notebook
def test_cells_are_short(source):
    for cell in code_cells(source):
        if {"hide-input", "hide-cell"} & tags(cell):
            continue  # set-up, diagrams, solutions
        lines = cell.source.splitlines()
        for node in functions(cell):
            head = slice(node.lineno - 1, node.body[0].end_lineno)
            lines[head] = [""] * len(lines[head])  # signature and docstring
        code = [s for s in lines if s.strip() and s.strip()[0] != "#"]
        assert len(code) <= 25, cell.source


@every_notebook
def test_every_code_cell_follows_a_sentence(source):
    cells = jupytext.read(source).cells
    for before, cell in zip(cells, cells[1:]):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source
