"""What is given away: a wheel and a source archive that pass the index's checks, and work where nothing of this checkout is."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import layerwise

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def shell(*words: str | Path, folder: Path) -> str:
    """What a command prints."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive, made of a copy: a build leaves folders where it works."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    tracked = shell("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=ROOT)
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file() and name.split("/")[0] not in ("results", "tests", "benchmarks"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    code = (
        "import setuptools.build_meta as made, sys; folder = sys.argv[1]; "
        "made.build_wheel(folder); made.build_sdist(folder)"
    )
    shell(sys.executable, "-c", code, dist, folder=copy)
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return wheel, archive


def test_the_index_takes_both(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Strictly: a description that the index cannot show is an error."""
    assert shell(sys.executable, "-m", "twine", "check", "--strict", *built, folder=tmp_path).count("PASSED") == 2


def test_both_hold_the_package_and_its_licence(built: tuple[Path, Path]) -> None:
    wheel, archive = built
    with zipfile.ZipFile(wheel) as opened:
        inside = set(opened.namelist())
    source = Path(layerwise.__file__).parent
    own = {
        str(path.relative_to(source.parent))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert own - inside == set()
    assert any(name.endswith("LICENSE") for name in inside)
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {f"src/{name}" for name in own} | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_wheel_works_in_an_empty_environment_and_another_folder(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Only its dependencies are lent by the environment of the tests, so that the test needs no network."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = ("-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(built[0]))
    shell(sys.executable, *install, folder=tmp_path)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(shell(python, "-c", where, folder=tmp_path).strip())
    (packages / "lent.pth").write_text(shell(sys.executable, "-c", where, folder=tmp_path))
    found = shell(python, "-I", "-c", "import layerwise; print(layerwise.__file__)", folder=tmp_path)
    assert Path(found.strip()).is_relative_to(packages)
    command = python.with_name("layerwise")
    small = ("--training.max_steps=2", "--training.eval_every=0", "--evaluation.attacks=[fgsm]", "--quiet")
    said = shell(command, "train", "slat-digits", *small, folder=tmp_path)
    assert "run folder: runs/slat-digits" in said
    assert (tmp_path / "runs/slat-digits/evaluation.json").is_file()


def test_the_citation_is_of_this_version_and_address() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["version"] == layerwise.__version__
    assert cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == PROJECT["urls"]["Source"]
    assert {work["notes"] for work in cited["references"]} == {"SLAT", "ANP", "LAD and LAD-SM", "LAT", "Deep Defense"}


def test_forms_for_issues_ask_something() -> None:
    forms = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")
    ]
    assert len(forms) == 2
    for form in forms:
        assert {"name", "description", "body"} <= form.keys()
        asked = [field for field in form["body"] if field.get("validations", {}).get("required")]
        assert asked
