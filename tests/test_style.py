"""How the book is written: each function once, short cells, in words."""

import ast
from collections import Counter
from functools import cache

import jupytext

from conftest import CONTENT, SOURCES, every_notebook
from test_book import CHAPTERS

# They are called from other programs, so they say more about themselves.
ENTRY_POINTS = {"train", "play_games", "evaluate", "load_model", "save_model"}
ENTRY_POINTS |= {"open_checkpoints"}
# Its functions prepare the other notebooks, so it comes before them.
ORDER = ["set_up", *(chapter.replace("-", "_") for chapter in CHAPTERS)]
# Checkpoints are explained apart, and used by the chapters from here on.
ORDER.insert(ORDER.index("train_to_win") + 1, "keep_a_training_safe")


@cache
def cells_of(source):
    return jupytext.read(source).cells


def code_cells(source):
    """Return the text, the tags, and the syntax tree of each code cell."""
    return [
        (cell.source, set(cell.metadata.get("tags", [])), ast.parse(cell.source))
        for cell in cells_of(source)
        if cell.cell_type == "code"
    ]


def definitions(nodes):
    return [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


def n_lines(text):
    return sum(bool(line.strip()) for line in text.splitlines())


def test_every_function_is_written_once():
    trees = [tree for source in SOURCES for _, _, tree in code_cells(source)]
    nodes = [node for tree in trees for node in definitions(tree.body)]
    names = Counter(n.name for n in nodes) + Counter(ast.unparse(n.body) for n in nodes)
    assert len(names) > 200
    assert max(names.values()) == 1, names.most_common(3)


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
    for code, tags, tree in code_cells(source):
        lines += n_lines(code)
        for node in definitions(ast.walk(tree)):
            if ast.get_docstring(node) is None:  # inner ones, solutions of exercises
                assert "export" not in tags or node not in tree.body, node.name
                continue
            size = node.body[0].end_lineno - node.body[0].lineno + 1
            words += size
            rest = node.end_lineno - node.body[0].end_lineno
            if node.name not in ENTRY_POINTS and isinstance(node, ast.FunctionDef):
                assert size <= max(rest, 2), f"{node.name}: {size} for {rest}"
    assert words <= 0.15 * lines, f"{words} of {lines}"


@every_notebook
def test_cells_are_short(source):
    for code, tags, tree in code_cells(source):
        if {"hide-input", "hide-cell"} & tags:
            continue  # diagrams, solutions
        lines = code.splitlines()
        for node in definitions(ast.walk(tree)):
            if ast.get_docstring(node):
                head = slice(node.lineno - 1, node.body[0].end_lineno)
                lines[head] = [""] * len(lines[head])  # and the signature
        left = [line for line in lines if not line.lstrip().startswith("#")]
        assert n_lines("\n".join(left)) <= 25, code


@every_notebook
def test_every_code_cell_follows_a_sentence(source):
    cells = cells_of(source)
    for before, cell in zip(cells, cells[1:]):
        assert "markdown" in (before.cell_type, cell.cell_type), cell.source


def test_first_cell_is_the_same_everywhere():
    cells = {source.stem: code_cells(source)[0] for source in SOURCES}
    common, _, _ = cells["set-up"]
    for name, (code, tags, _) in cells.items():
        assert code.startswith(common), name
        assert n_lines(code) <= 12 and "export" not in tags, name


def test_pages_are_short():
    lengths = {p.name: len(p.read_text("utf-8").splitlines()) for p in SOURCES}
    assert max(lengths.values()) <= 820, lengths
    del lengths["play.md"]  # an extra: no other chapter builds on it
    assert sum(lengths.values()) <= 6_800, lengths
