"""The files around the notebooks agree with each other."""

import ast
import json
import os
import re
import shutil
import sys
import tomllib
import zipfile
from functools import partial
from importlib.metadata import packages_distributions

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement

import conftest
from conftest import CONTENT, ROOT, SOURCES
from pong.set_up import facts
from test_book import launch_addresses

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
run = partial(conftest.run, cwd=ROOT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# What the package needs, though none of its modules and no cell imports it.
TOOLS = {"jinja2", "moviepy"}
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="without a history")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def python(module, *arguments):
    """Run a module, which must succeed."""
    done = run(sys.executable, "-m", module, *arguments)
    assert done.returncode == 0, done.stdout


def make(folder, *words, **how):  # whatever the make around it was told
    return run("make", "-C", folder, "REQUIREMENTS=requirements-dev.txt", *words, **how)


TARGETS = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))

# Requirements


def locked(name):
    """Return the versions and hashes in a lock by package name."""
    pins = {}
    pattern = r"^([\w.-]+)==([^ ;]+)(.*(?:\n    --hash.*)+)"
    for package, version, rest in re.findall(pattern, read(name), re.MULTILINE):
        hashes = re.findall(r"sha256:\w+", rest)
        pins.setdefault(package, []).append((version, hashes))
    return pins


def test_locks_agree_and_hold_what_is_required():
    small, large = locked("requirements.txt"), locked("requirements-dev.txt")
    assert not [p for p in small if small[p] != large.get(p)], "run `make lock`"
    project = PROJECT["project"]
    notebook = project["optional-dependencies"]["notebook"]
    for lock, texts in (
        (small, [*project["dependencies"], *notebook]),
        (large, PROJECT["dependency-groups"]["dev"]),
    ):
        for requirement in map(Requirement, texts):
            assert requirement.specifier, f"{requirement.name} has no bounds"
            assert requirement.name in lock, "run `make lock`"
            for version, _ in lock[requirement.name]:
                assert requirement.specifier.contains(version), requirement.name


def test_package_needs_what_it_imports_and_no_more():
    modules = {
        (getattr(node, "module", None) or node.names[0].name).partition(".")[0]
        for source in SOURCES
        for cell in jupytext.read(source).cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    distributions = packages_distributions()
    imported = {
        distributions[module][0].lower().replace("_", "-")
        for module in modules - set(sys.stdlib_module_names) - {"pong"}
    }
    needed = map(Requirement, PROJECT["project"]["dependencies"])
    assert imported | TOOLS == {requirement.name for requirement in needed}


def test_wheel_holds_the_package_and_its_data(tmp_path):
    options = ("--quiet", "--offline", "--no-build-isolation", "--out-dir", tmp_path)
    python("uv", "build", *options, "--python", sys.executable)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        for path in (CONTENT / "pong").rglob("*.*"):
            if path.suffix != ".pyc":
                name = path.relative_to(CONTENT).as_posix()
                assert archive.read(name) == path.read_bytes(), name
    data = sum(size for name, size in sizes.items() if "/data/" in name)
    assert 2_000_000 < data <= 4_000_000
    assert all(name.startswith("pong/") or ".dist-info/" in name for name in sizes)


# What a page sets side by side.
TOGETHER = [
    ("erasing", "variants", "points", "openings"),
    ("reference-runs", "gauges", "plain-runs", "critic-games", "critic-speed"),
    ("reference-runs", "more-runs"),
    ("evaluation", "ages", "rallies", "openings"),
    ("critic-ablations", "critic-discount"),
]


@pytest.mark.parametrize("names", TOGETHER, ids="-".join)
def test_tables_side_by_side_are_of_one_day_and_machine(names):
    made = [facts(name)["made with"] for name in names]
    for key in made[0].keys() - {"commit"}:
        assert len({m[key] for m in made}) == 1, key


@pytest.mark.skipif(os.name == "nt", reason="JupyterLab's settings are elsewhere")
def test_jupyterlab_opens_md_files_as_notebooks(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    monkeypatch.delenv("JUPYTER_CONFIG_DIR", raising=False)
    done = run("bash", "binder/postBuild")
    assert done.returncode == 0, done.stdout
    (settings,) = tmp_path.glob("**/default_setting_overrides.json")
    viewers = json.loads(settings.read_text(encoding="utf-8"))
    factories = viewers["@jupyterlab/docmanager-extension:plugin"]
    assert factories["defaultViewers"]["markdown"] == "Jupytext Notebook"


# Binder and conda


@pytest.mark.skipif(os.name == "nt", reason="git makes no links on Windows")
def test_conda_and_binder_take_the_lock():
    pip = yaml.safe_load(read("environment.yml"))["dependencies"][-1]
    assert pip == {"pip": ["-r requirements.txt"]}
    files = ("apt.txt", "environment.yml", "requirements.txt")
    assert {path.name for path in (ROOT / "binder").iterdir()} == {*files, "postBuild"}
    for name in files:
        assert os.readlink(ROOT / "binder" / name) == f"../{name}"


@pytest.mark.skipif(os.name == "nt", reason="repo2docker needs Linux or macOS")
def test_binder_accepts_the_repository():
    program = shutil.which("jupyter-repo2docker", path=os.path.dirname(sys.executable))
    done = run(program, "--no-build", "--debug", ROOT)
    assert done.returncode == 0, done.stdout
    assert "Building conda environment for python=3.13" in done.stdout
    # The repository is there before the environment that refers to its lock.
    copied = done.stdout.index(" src/ ${REPO_DIR}/")
    assert '--file "binder/environment.yml"' in done.stdout[copied:]
    assert "binder/environment.yml" not in done.stdout[:copied]
    assert "./binder/postBuild" in done.stdout
    for package in re.findall("^[^#\n].*", read("apt.txt"), re.MULTILINE):
        assert re.search(rf"apt-get install .*\b{package}\b", done.stdout)


# Addresses and commands


def copies(slug):
    """Return the files that repeat the project's address."""
    found = run("git", "grep", "-lF", "--untracked", slug).stdout.split()
    return sorted(set(found) - {"_config.yml"})


@needs_git
def test_address_stands_in_one_setting(config):
    """Badges and first cells repeat it; `make repository` changes all."""
    url = config["repository"]["url"]
    notebooks = {f"content/{s.stem}{end}" for s in SOURCES for end in (".md", ".ipynb")}
    others = {"CITATION.cff", "README.md", "content/index.md"}
    slug = url.removeprefix("https://github.com/")
    assert set(copies(slug)) == notebooks | others
    readme = read("README.md")
    assert f"git clone {url}\n" in readme
    badges = re.findall(r"\((https[^)]*\.ipynb)\)", readme)
    assert set(badges) == launch_addresses(config, "pong-from-pixels")


@needs_git
def test_make_repository_changes_the_address(tmp_path, config):
    new = "https://github.com/somebody/a-copy"
    urls = (config["repository"]["url"], new)
    slugs = [url.removeprefix("https://github.com/") for url in urls]
    files = ("Makefile", "_config.yml", *copies(slugs[0]))
    (tmp_path / "content").mkdir()
    for name in files:
        shutil.copy(ROOT / name, tmp_path / name)
    for bad in ("", "https://example.org/x", "https://github.com/a", f"{new}.git"):
        done = make(tmp_path, "repository", f"URL={bad}")
        assert done.returncode != 0
        assert "say which" in done.stdout
        assert (tmp_path / "README.md").read_text("utf-8") == read("README.md")
    done = make(tmp_path, "repository", f"URL={new}")
    assert done.returncode == 0, done.stdout
    for name in files[1:]:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text == read(name).replace(*slugs) != read(name)
    left = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {tmp_path / name for name in files}


@pytest.mark.skipif(os.name == "nt", reason="such names are not usual there")
def test_make_works_in_a_folder_with_any_name(tmp_path):
    folder = tmp_path / "J\u00fcrgens B\u00fccher (1)"
    others = folder / "content" / "Untitled Folder" / "__pycache__"
    others.mkdir(parents=True)
    (folder / "content" / "Untitled").touch()
    shutil.copy(ROOT / "Makefile", folder)
    done = make(folder, "clean")
    assert done.returncode == 0, done.stdout
    assert not others.exists()
    assert (folder / "content" / "Untitled").exists()
    # A Python whose path has spaces; a .venv of another folder, made anew.
    (folder / ".venv").mkdir()
    (folder / ".venv" / "installed").write_text("elsewhere\n")
    (folder / "requirements-dev.txt").touch()
    echo = folder / "py thon"
    echo.write_text('#!/bin/sh\necho "$@"\n')
    echo.chmod(0o755)
    done = make(folder, "book", f"PYTHON={echo}")
    assert "-m venv .venv\nInstalling requirements-dev.txt" in done.stdout
    assert not (folder / ".venv" / "installed").exists()


def test_make_tells_notebooks_how_long_to_train(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "content").mkdir()
    (tmp_path / "scripts").mkdir()
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    say = 'echo "$PONG_BUDGET [$MPLBACKEND]"; command -v ruff || true'
    for name in ("jupyter", "jupyter-book", "jupytext", "python", "ruff"):
        (programs / name).write_text(f"#!/bin/sh\n{say}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "requirements-dev.txt").touch()
    (tmp_path / ".venv" / "installed").write_text(f"{tmp_path}\n")
    for target, variables, budget in (
        ("book", {}, "quick"),
        ("lab", {}, "full"),
        ("record", {}, "full"),
        ("book", {"PONG_BUDGET": "7"}, "7"),
        ("lab", {"BUDGET": "quick"}, "quick"),
        ("lab", {"PONG_BUDGET": "quick"}, "quick"),
    ):
        env = {k: v for k, v in os.environ.items() if "BUDGET" not in k}
        env |= {"MPLBACKEND": "agg", "MAKEFLAGS": "", **variables}
        done = make(tmp_path, target, env=env)
        assert f"{budget} []\n" in done.stdout, done.stdout
    done = make(tmp_path, "format", env=env)
    assert f"{programs}/ruff\n" in done.stdout  # jupytext finds it


@needs_git
def test_git_for_windows_changes_no_byte(tmp_path):
    clone = str(tmp_path / "clone")
    run("git", "clone", "-q", "-c", "core.autocrlf=true", ROOT, clone)
    assert not run("bash", "-n", f"{clone}/.ci/run").returncode
    endings = run("git", "-C", clone, "ls-files", "--eol").stdout
    assert " w/lf" in endings and " w/crlf" not in endings


def test_readme_names_commands_and_files_that_exist():
    readme = read("README.md")
    named = set(re.findall(r"\bmake ([a-z]+)\b", readme))
    assert {"book", "test", "lab", "notebooks", "lock"} <= named <= TARGETS
    table = readme.split("## What is where")[1].split("## Contribute")[0]
    for names in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            assert list(ROOT.glob(name.rstrip("/"))), name
    for picture in re.findall(r"!\[[^\]]+\]\((content/[^)]+)\)", readme):
        assert (ROOT / picture).exists()


def test_make_help_lists_every_command():
    shown = run("make", "help").stdout
    for target in re.findall(r"^\.PHONY: ([a-z-]+)", read("Makefile"), re.M):
        if target not in ("system-packages", "apt"):  # parts of the others
            assert f"make {target} " in shown, target


@needs_git
def test_no_file_knows_where_it_was_written():
    found = run("git", "grep", "-nE", r"(^|[ \"'=(])/(root|home|work|tmp)/")
    assert found.stdout == ""


# What other programs read


@pytest.mark.parametrize(
    "schema, files",
    [
        ("citation-file-format", ["CITATION.cff"]),
        ("dependabot", [".github/dependabot.yml"]),
        ("github-workflows", WORKFLOWS),
    ],
)
def test_file_is_valid(schema, files):
    python("check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_thin_and_harmless(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "secrets." not in text and "pull_request_target" not in text
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120
        deploys = (path.stem, name) == ("publish", "deploy")
        granted = {"pages": "write", "id-token": "write"} if deploys else {}
        assert job.get("permissions", {}) == granted
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            if "run" in step:
                command, target, *_ = step["run"].split()
                assert command == "make" and target in TARGETS


def test_workflows_cover_the_systems_and_pythons_we_promise():
    workflow = yaml.safe_load(read(".github/workflows/test.yml"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    systems = {name.partition("-")[0] for name in matrix["os"]}
    assert systems == {"ubuntu", "macos", "windows"}
    assert read(".ci/run").endswith("\nexec make test\n")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# Style


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_passes(command):
    python("ruff", *command, "tests", "scripts", "content")
