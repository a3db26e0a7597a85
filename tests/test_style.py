"""How the book is written: each function once, short cells, in words."""

import ast

import jupytext
import pytest
import yaml

from conftest import CONTENT, ROOT, SOURCES

every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
# They are called from other programs, so they say more about themselves.
ENTRY_POINTS = {
    "train",
    "play_games",
    "evaluate",
    "load_model",
    "save_model",
    "open_checkpoints",
}
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
# Its functions prepare the other notebooks, so it comes before them.
ORDER = ["set_up"] + [
    chapter["file"].replace("-", "_")
    for part in yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))["parts"]
    for chapter in part["chapters"]
]
# Checkpoints are explained apart, and used by the chapters from here on.
ORDER.insert(ORDER.index("train_to_win") + 1, "keep_a_training_safe")


def code_cells(source):
    cells = jupytext.read(source).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def definitions(source):
    for cell in code_cells(source):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, DEFINITIONS):
                yield cell, node


def test_every_function_is_written_once():
    homes = {}
    for source in SOURCES:
        for cell in code_cells(source):
            for node in ast.parse(cell.source).body:
                if isinstance(node, DEFINITIONS):
                    homes.setdefault(node.name, []).append(source.name)
    assert len(homes) > 100
    assert not {name: h for name, h in homes.items() if len(h) > 1}


def test_modules_import_from_earlier_chapters_only():
    seen = 0
    for path in (CONTENT / "pong").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pong."):
                other = node.module.removeprefix("pong.")
                assert ORDER.index(other) < ORDER.index(path.stem), path.name
                seen += 1
    assert seen > 5


@every_notebook
def test_docstrings_are_short(source):
    lines = words = 0
    for cell in code_cells(source):
        lines += len([s for s in cell.source.splitlines() if s.strip()])
    for cell, node in definitions(source):
        doc = ast.get_docstring(node)
        if doc is None:  # inner functions, and solutions of exercises
            exported = "export" in cell.metadata.get("tags", [])
            top = node in ast.parse(cell.source).body
            assert not (exported and top), node.name
            continue
        size = node.body[0].end_lineno - node.body[0].lineno + 1
        words += size
        rest = node.end_lineno - node.body[0].end_lineno
        if node.name not in ENTRY_POINTS and isinstance(node, ast.FunctionDef):
            assert size <= max(rest, 2), f"{node.name}: {size} for {rest}"
    assert words <= 0.15 * lines, f"{words} of {lines}"


@every_notebook
def test_cells_are_short(source):
    for cell in code_cells(source):
        if {"hide-input", "hide-cell"} & set(cell.metadata.get("tags", [])):
            continue  # diagrams, solutions
        lines = cell.source.splitlines()
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, DEFINITIONS) and ast.get_docstring(node):
                head = slice(node.lineno - 1, node.body[0].end_lineno)
                lines[head] = [""] * len(lines[head])  # and the signature
        code = [s for s in lines if s.strip() and s.strip()[0] != "#"]
        assert len(code) <= 25, cell.source


@every_notebook
def test_every_code_cell_follows_a_sentence(source):
    cells = jupytext.read(source).cells
    for before, cell in zip(cells, cells[1:]):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source


def test_first_cell_is_the_same_everywhere(config):
    url = config["repository"]["url"]
    cells = {source.stem: code_cells(source)[0] for source in SOURCES}
    common = cells["set-up"].source
    assert f'"git+{url}"' in common
    for name, cell in cells.items():
        assert cell.source.startswith(common), name
        assert len([s for s in cell.source.splitlines() if s.strip()]) <= 12
        assert "export" not in cell.metadata.get("tags", [])


def test_pages_are_short():
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCES
    }
    assert max(lengths.values()) <= 900, lengths
    del lengths["play.md"]  # an extra: no other chapter builds on it
    assert sum(lengths.values()) <= 6_800, lengths
