"""The files around the notebooks agree with each other."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import ROOT, SOURCES

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What the package needs, though none of its modules and no cell imports it.
TOOLS = {"jinja2", "moviepy"}
needs_git = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="this is a copy without its history"
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def required():
    """Return the requirements of pyproject.toml: of the package, and of all."""
    table = tomllib.loads(read("pyproject.toml"))
    project, extras = (table["project"], table["project"]["optional-dependencies"])
    lists = (project["dependencies"], *extras.values())
    package = {
        canonicalize_name(r.name): r for texts in lists for r in map(Requirement, texts)
    }
    dev = map(Requirement, table["dependency-groups"]["dev"])
    return package, package | {canonicalize_name(r.name): r for r in dev}


def locked(name):
    """Return a lock's versions and hashes by package name."""
    packages = {}
    pattern = r"^([\w.-]+)==([^ ;]+)(?: ;[^\\\n]*)? \\\n((?:    --hash=.*\n)+)"
    for match in re.finditer(pattern, read(name), re.MULTILINE):
        hashes = re.findall(r"sha256:[0-9a-f]{64}", match[3])
        packages.setdefault(canonicalize_name(match[1]), []).append(
            (Version(match[2]), tuple(hashes))
        )
    pins = re.findall(r"^[\w.-]+==", read(name), re.MULTILINE)
    assert sum(map(len, packages.values())) == len(pins) > 50
    return packages


def run(*command, **options):
    return subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        **options,
    )


# Requirements


@pytest.mark.parametrize(
    ("name", "which"), [("requirements", 0), ("requirements-dev", 1)]
)
def test_locks_hold_what_is_required(name, which):
    lock = locked(f"{name}.txt")
    for package, requirement in required()[which].items():
        assert package in lock, f"{package}: run `make lock`"
        for version, hashes in lock[package]:
            assert requirement.specifier.contains(version), package
            assert hashes, package
        assert requirement.specifier, f"{package} has no bounds"


def test_both_locks_agree():
    small, large = locked("requirements.txt"), locked("requirements-dev.txt")
    assert len(small) < len(large)
    for package, versions in small.items():
        assert versions == large[package], f"{package}: run `make lock`"


def test_package_needs_what_it_imports_and_no_more():
    distributions = packages_distributions()
    texts = [
        cell.source
        for source in SOURCES
        for cell in jupytext.read(source).cells
        if cell.cell_type == "code"
    ]
    modules = set()
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    modules = {module.split(".")[0] for module in modules} - {"pong"}
    imported = {
        canonicalize_name(distributions[module][0])
        for module in modules - set(sys.stdlib_module_names)
    }
    project = tomllib.loads(read("pyproject.toml"))["project"]
    needed = map(Requirement, project["dependencies"])
    names = {canonicalize_name(requirement.name) for requirement in needed}
    assert imported | TOOLS == names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel, made from an sdist, made from the files of the project."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--directory"]
    assert not run(*build, str(folder), "--target", "sdist").returncode
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    done = subprocess.run(
        [*build, str(folder), "--target", "wheel"],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_holds_the_package_and_its_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        for path in (ROOT / "content" / "pong").rglob("*.*"):
            if path.suffix != ".pyc":
                name = path.relative_to(ROOT / "content").as_posix()
                assert archive.read(name) == path.read_bytes(), name
    data = [i for name, i in infos.items() if "/data/" in name]
    assert 2_000_000 < sum(info.file_size for info in data) <= 4_000_000
    others = {n for n in infos if not n.startswith("pong/")}
    assert all(".dist-info/" in name for name in others)


def test_jupyterlab_opens_md_files_as_notebooks(tmp_path):
    """What binder/postBuild runs does what it says."""
    script = ROOT / "binder" / "postBuild"
    bin_folder = os.path.dirname(sys.executable)
    path = bin_folder + os.pathsep + os.environ["PATH"]
    env = {**os.environ, "HOME": str(tmp_path), "PATH": path}
    env.pop("JUPYTER_CONFIG_DIR", None)
    done = run("bash", str(script), env=env)
    assert done.returncode == 0, done.stdout
    (settings,) = tmp_path.glob("**/default_setting_overrides.json")
    viewers = json.loads(settings.read_text(encoding="utf-8"))
    factories = viewers["@jupyterlab/docmanager-extension:plugin"]
    assert factories["defaultViewers"]["markdown"] == "Jupytext Notebook"


# Binder and conda


def test_conda_takes_the_lock():
    environment = yaml.safe_load(read("environment.yml"))
    (python,) = [d for d in environment["dependencies"] if str(d).startswith("python=")]
    assert "3.11" <= python.removeprefix("python=") <= "3.14"
    pip = environment["dependencies"][-1]
    assert pip == {"pip": ["-r requirements.txt"]}


@pytest.mark.skipif(os.name == "nt", reason="git makes no links on Windows")
def test_binder_links_to_the_files_at_the_root():
    files = {path.name: path for path in (ROOT / "binder").iterdir()}
    post_build = files.pop("postBuild")
    assert not post_build.is_symlink()
    assert os.access(post_build, os.X_OK)
    assert set(files) == {"apt.txt", "environment.yml", "requirements.txt"}
    for name, link in files.items():
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


@pytest.mark.skipif(os.name == "nt", reason="repo2docker needs Linux or macOS")
def test_binder_accepts_the_repository():
    repo2docker = shutil.which(
        "jupyter-repo2docker", path=os.path.dirname(sys.executable)
    )
    done = run(repo2docker, "--no-build", "--debug", str(ROOT))
    assert done.returncode == 0, done.stdout
    assert "FROM docker.io/library/buildpack-deps" in done.stdout
    environment = yaml.safe_load(read("environment.yml"))
    assert "python=3.13" in environment["dependencies"]
    assert "Building conda environment for python=3.13" in done.stdout
    assert '--file "binder/environment.yml"' in done.stdout
    assert "./binder/postBuild" in done.stdout
    assert re.search(r'CMD \["jupyter", "(lab|notebook)"', done.stdout)
    for package in read("apt.txt").splitlines():
        if package and not package.startswith("#"):
            assert re.search(rf"apt-get install .*\b{package}\b", done.stdout)
    # The repository is there before the environment that refers to its lock.
    assert done.stdout.index("COPY --chown=0:0 src/") < done.stdout.index(
        "binder/environment.yml"
    )


# Addresses and commands


def test_readme_uses_the_address_of_the_settings(config):
    url = config["repository"]["url"]
    branch = config["repository"]["branch"]
    slug = url.removeprefix("https://github.com/")
    readme = read("README.md")
    assert url != slug
    assert f"git clone {url}\n" in readme
    page = "content/pong-from-pixels.ipynb"
    assert (ROOT / page).exists()
    assert (
        f"https://mybinder.org/v2/gh/{slug}/{branch}?urlpath=lab/tree/{page}" in readme
    )
    assert (
        f"https://colab.research.google.com/github/{slug}/blob/{branch}/{page}"
        in readme
    )


def copies(slug):
    """Return the files that repeat the project's address."""
    found = run("git", "grep", "-lF", "--untracked", slug).stdout.split()
    return sorted(set(found) - {"_config.yml"})


@needs_git
def test_address_stands_in_one_setting(config):
    """Badges and first cells repeat it; `make repository` changes all."""
    slug = config["repository"]["url"].removeprefix("https://github.com/")
    notebooks = {
        f"content/{source.stem}{suffix}"
        for source in SOURCES
        for suffix in (".md", ".ipynb")
    }
    others = {"CITATION.cff", "README.md", "content/index.md"}
    assert set(copies(slug)) == notebooks | others


def test_citation_is_valid(config):
    done = run(
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.citation-file-format",
        "CITATION.cff",
    )
    assert done.returncode == 0, done.stdout
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["title"] == config["title"]
    assert citation["repository-code"] == config["repository"]["url"]


@needs_git
def test_make_repository_changes_the_address(tmp_path, config):
    old = config["repository"]["url"]
    new = "https://github.com/somebody/a-copy"
    slugs = [url.removeprefix("https://github.com/") for url in (old, new)]
    files = ("Makefile", "_config.yml", *copies(slugs[0]))
    (tmp_path / "content").mkdir()
    for name in files:
        shutil.copy(ROOT / name, tmp_path / name)
    for bad in ("", "https://example.org/x", "https://github.com/a"):
        done = run("make", "-C", str(tmp_path), "repository", f"URL={bad}")
        assert done.returncode != 0
        assert "say which" in done.stdout
        assert (tmp_path / "README.md").read_text("utf-8") == read("README.md")
    done = run("make", "-C", str(tmp_path), "repository", f"URL={new}")
    assert done.returncode == 0, done.stdout
    for name in files[1:]:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text == read(name).replace(*slugs) != read(name)
    left = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {tmp_path / name for name in files}


@pytest.mark.skipif(os.name == "nt", reason="such names are not usual there")
def test_make_works_in_a_folder_with_any_name(tmp_path):
    """What only cleans and asks: whole commands are for CI's own folder."""
    folder = tmp_path / "J\u00fcrgens B\u00fccher (1)"
    others = folder / "content" / "Untitled Folder" / "__pycache__"
    others.mkdir(parents=True)
    (folder / "content" / "Untitled").touch()
    shutil.copy(ROOT / "Makefile", folder)
    done = run("make", "-C", str(folder), "clean")
    assert done.returncode == 0, done.stdout
    assert not others.exists()
    assert (folder / "content" / "Untitled").exists()
    # A Python whose path has spaces; a .venv of another folder, made anew.
    (folder / ".venv").mkdir()
    python = folder / "py thon"
    python.symlink_to(sys.executable)
    (folder / "requirements-dev.txt").write_text("uv==0 \\\n    --hash=x\n")
    (folder / ".venv" / "installed").write_text("elsewhere\n")
    done = run("make", "-C", str(folder), "book", f"PYTHON={python}")
    assert "Installing requirements-dev.txt" in done.stdout
    assert "is needed" not in done.stdout and "syntax" not in done.stdout


def test_make_tells_notebooks_how_long_to_train(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "content").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    say = 'echo "$PONG_BUDGET [$MPLBACKEND]"; command -v ruff'
    for name in ("jupyter", "jupyter-book", "jupytext", "python", "ruff"):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(f"#!/bin/sh\n{say} || true\n")
        program.chmod(0o755)
    (tmp_path / "requirements-dev.txt").touch()
    (tmp_path / ".venv" / "installed").write_text(f"{tmp_path}\n")
    for target, variables, budget in (
        ("book", {}, "quick"),
        ("lab", {}, "full"),
        ("book", {"PONG_BUDGET": "7"}, "7"),
        ("lab", {"BUDGET": "quick"}, "quick"),
        ("lab", {"PONG_BUDGET": "quick"}, "quick"),
    ):
        env = {k: v for k, v in os.environ.items() if "BUDGET" not in k}
        env |= {"MPLBACKEND": "agg", "MAKEFLAGS": "", **variables}
        done = run("make", "-C", str(tmp_path), target, env=env)
        assert f"{budget} []\n" in done.stdout, done.stdout
    done = run("make", "-C", str(tmp_path), "format", env=env)
    assert f"{tmp_path}/.venv/bin/ruff\n" in done.stdout  # jupytext finds it


@needs_git
def test_git_for_windows_changes_no_byte(tmp_path):
    clone = str(tmp_path / "clone")
    run("git", "clone", "-q", "-c", "core.autocrlf=true", str(ROOT), clone)
    assert not run("bash", "-n", f"{clone}/.ci/run").returncode
    endings = run("git", "-C", clone, "ls-files", "--eol").stdout
    assert " w/lf" in endings and " w/crlf" not in endings


def test_readme_names_commands_and_files_that_exist():
    readme = read("README.md")
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", readme))
    assert {"book", "test", "lab", "notebooks", "lock"} <= named
    assert named <= targets
    table = readme.split("## What is where")[1].split("## Contribute")[0]
    for names in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            assert list(ROOT.glob(name.rstrip("/"))), name
    for picture in re.findall(r"!\[[^\]]+\]\((content/[^)]+)\)", readme):
        assert (ROOT / picture).exists()


def test_make_help_lists_every_command():
    help_text = run("make", "help").stdout
    for target in re.findall(r"^\.PHONY: ([a-z-]+)", read("Makefile"), re.M):
        if target not in ("system-packages", "apt"):  # parts of the others
            assert f"make {target} " in help_text, target


@needs_git
def test_no_file_knows_where_it_was_written():
    found = run("git", "grep", "-nE", r"(^|[ \"'=(])/(root|home|work|tmp)/")
    assert found.stdout == ""


# Continuous integration


def test_workflows_are_valid():
    for schema, files in (
        ("github-workflows", WORKFLOWS),
        ("dependabot", [ROOT / ".github" / "dependabot.yml"]),
    ):
        assert files
        done = run(
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            f"vendor.{schema}",
            *map(str, files),
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_thin_and_harmless(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "secrets." not in text
    assert "pull_request_target" not in text
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120
        granted = job.get("permissions", {})
        if (path.stem, name) == ("publish", "deploy"):
            assert granted == {"pages": "write", "id-token": "write"}
        else:
            assert not granted
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            if "run" in step:
                command, target, *_ = step["run"].split()
                assert command == "make"
                assert target in targets


def test_workflows_cover_the_systems_and_pythons_we_promise():
    workflow = yaml.safe_load(read(".github/workflows/test.yml"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert {name.split("-")[0] for name in matrix["os"]} == {
        "ubuntu",
        "macos",
        "windows",
    }
    publish = yaml.safe_load(read(".github/workflows/publish.yml"))
    commands = [step.get("run") for step in publish["jobs"]["build"]["steps"]]
    assert 'make repository URL="$GITHUB_SERVER_URL/$GITHUB_REPOSITORY"' in commands
    assert "make light BUDGET=full PYTHON=python" in commands


def test_ci_calls_make_test():
    lines = read(".ci/run").splitlines()
    assert lines[-1] == "exec make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# Style


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_passes(command):
    done = run(sys.executable, "-m", "ruff", *command, "tests", "scripts", "content")
    assert done.returncode == 0, done.stdout
