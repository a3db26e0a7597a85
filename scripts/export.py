"""Write the package's modules from the cells of the chapters tagged `export`.

`python scripts/export.py` writes content/pong/*.py, one module for each notebook that
has such cells. The notebooks are the source: edit those.
"""

from pathlib import Path

import jupytext

CONTENT = Path(__file__).resolve().parent.parent / "content"
HEADER = "# Made by `make notebooks` from content/{name}: edit that.\n"


def notebooks(folder=CONTENT):
    """Return the paths of the notebooks: the .md files that jupytext pairs."""
    start = "---\njupytext:"
    paths = sorted(folder.glob("*.md"))
    return [p for p in paths if p.read_text("utf-8").startswith(start)]


def module(path):
    """Return the path and the text of a notebook's module; no text if none."""
    cells = [
        cell.source
        for cell in jupytext.read(path).cells
        if "export" in cell.metadata.get("tags", [])
    ]
    text = "\n\n\n".join(cells)
    if text:
        space = "\n\n" if text.startswith(("class ", "def ")) else "\n"
        text = HEADER.format(name=path.name) + space + text + "\n"
    name = path.stem.replace("-", "_")
    return path.parent / "pong" / f"{name}.py", text


if __name__ == "__main__":
    for notebook in notebooks():
        target, text = module(notebook)
        if text:
            target.write_text(text, encoding="utf-8", newline="\n")
            print(target.relative_to(CONTENT.parent))
