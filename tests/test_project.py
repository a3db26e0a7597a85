"""The files around the notebooks agree with each other."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions

import jupytext
import pytest
import yaml
from conftest import ROOT, SOURCES
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What a reader needs to open and run the notebooks, though no cell imports it.
TOOLS = {"ipykernel", "jupyterlab", "jupytext", "moviepy"}


# What repeats the project's address, besides the setting itself.
COPIES = (
    "CITATION.cff",
    "README.md",
    "content/inside-the-agent.ipynb",
    "content/inside-the-agent.md",
    "content/scale-out.ipynb",
    "content/scale-out.md",
    "content/train-to-win.ipynb",
    "content/train-to-win.md",
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def direct(name):
    """Return the requirements of an .in file by name."""
    lines = [line.split("#")[0].strip() for line in read(name).splitlines()]
    found = [Requirement(s) for s in lines if s and not s.startswith("-")]
    return {canonicalize_name(r.name): r for r in found}


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


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_locks_hold_what_is_required(name):
    lock = locked(f"{name}.txt")
    for package, requirement in direct(f"{name}.in").items():
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


def test_notebooks_need_what_they_import_and_no_more():
    distributions = packages_distributions()
    modules = set()
    for source in SOURCES:
        for cell in jupytext.read(source).cells:
            if cell.cell_type == "code":
                for node in ast.walk(ast.parse(cell.source)):
                    if isinstance(node, ast.Import):
                        modules |= {alias.name for alias in node.names}
                    elif isinstance(node, ast.ImportFrom):
                        modules.add(node.module)
    modules = {module.split(".")[0] for module in modules}
    imported = {
        canonicalize_name(distributions[module][0])
        for module in modules - set(sys.stdlib_module_names)
    }
    imported -= {"ipython"}  # the kernel brings it
    assert imported | TOOLS == set(direct("requirements.in"))


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
    (python,) = [
        d for d in environment["dependencies"] if str(d).startswith("python=")
    ]
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
        f"https://mybinder.org/v2/gh/{slug}/{branch}?urlpath=lab/tree/{page}"
        in readme
    )
    assert (
        f"https://colab.research.google.com/github/{slug}/blob/{branch}/{page}"
        in readme
    )


def test_address_stands_in_one_setting(config):
    """The badges and three notebooks repeat it; `make repository` changes all."""
    slug = config["repository"]["url"].removeprefix("https://github.com/")
    holders = set(run("git", "grep", "-lF", slug).stdout.split())
    assert holders == {"_config.yml", *COPIES}


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


def test_make_repository_changes_the_address(tmp_path, config):
    files = ("Makefile", "_config.yml", *COPIES)
    (tmp_path / "content").mkdir()
    for name in files:
        shutil.copy(ROOT / name, tmp_path / name)
    old = config["repository"]["url"]
    new = "https://github.com/somebody/a-copy"
    for bad in ("", "https://example.org/x", "https://github.com/a"):
        done = run("make", "-C", str(tmp_path), "repository", f"URL={bad}")
        assert done.returncode != 0
        assert "say which" in done.stdout
        assert (tmp_path / "README.md").read_text(encoding="utf-8") == read(
            "README.md"
        )
    done = run("make", "-C", str(tmp_path), "repository", f"URL={new}")
    assert done.returncode == 0, done.stdout
    for name in ("_config.yml", *COPIES):
        text = (tmp_path / name).read_text(encoding="utf-8")
        slugs = [u.removeprefix("https://github.com/") for u in (old, new)]
        assert text == read(name).replace(*slugs) != read(name)
    left = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {tmp_path / name for name in files}


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
    assert (
        'make repository URL="$GITHUB_SERVER_URL/$GITHUB_REPOSITORY"'
        in commands
    )
    assert "make book BUDGET=full PYTHON=python" in commands


def test_ci_calls_make_test():
    lines = read(".ci/run").splitlines()
    assert lines[-1] == "exec make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# Style


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_passes(command):
    done = run(sys.executable, "-m", "ruff", *command, "tests", "content")
    assert done.returncode == 0, done.stdout
