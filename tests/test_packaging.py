"""What a wheel and an sdist hold. The build backend is called directly: no network, no pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED = ("simko_mlx", "cli", "configs", "scripts", "tests", "docs", "benchmarks")
SHIPPED_FILES = (
    *("pyproject.toml", "MANIFEST.in", "Makefile"),
    *("README.md", "LICENSE", "CHANGELOG.md"),
)


def setuptools_major() -> int:
    try:
        return int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        return 0


needs_setuptools = pytest.mark.skipif(
    setuptools_major() < 77, reason="building needs setuptools 77 or newer (the dev extra has it)"
)


def build(kind: str, source: Path, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the checkout. Its path has a space."""
    folder = tmp_path_factory.mktemp("a checkout")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in SHIPPED_FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    archive = build("sdist", source, tmp_path_factory.mktemp("sdist") / "out")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the wheel that is built from the sdist, as `pip install` of an sdist does."""
    made = build("wheel", sdist, tmp_path_factory.mktemp("wheel") / "out")
    with zipfile.ZipFile(made) as file:
        return set(file.namelist())


def python_files(folder: str, name: str) -> set[str]:
    return {f"{name}/{p.relative_to(ROOT / folder)}" for p in (ROOT / folder).rglob("*.py")}


@needs_setuptools
def test_the_wheel_holds_all_modules_and_no_package_called_cli(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name}
    assert tops == {"simko_mlx", "simko_mlx_cli"}
    found = {name for name in wheel if name.endswith(".py")}
    assert found == python_files("simko_mlx", "simko_mlx") | python_files("cli", "simko_mlx_cli")


@needs_setuptools
def test_the_wheel_holds_recipes_assets_kernels_and_the_licence(wheel):
    assert "simko_mlx/py.typed" in wheel
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"simko_mlx/recipes/{path.name}" in wheel
    for path in (ROOT / "simko_mlx" / "assets" / "countdown_tiny").iterdir():
        assert f"simko_mlx/assets/countdown_tiny/{path.name}" in wheel
    for path in (ROOT / "simko_mlx" / "kernels").glob("*.metal"):
        assert f"simko_mlx/kernels/{path.name}" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert any(name.endswith("entry_points.txt") for name in wheel)


@needs_setuptools
def test_an_installed_wheel_finds_its_recipes(sdist, tmp_path):
    made = build("wheel", sdist, tmp_path / "out")
    with zipfile.ZipFile(made) as file:
        file.extractall(tmp_path / "site")
    code = (
        "from simko_mlx.config_sources import recipe_path, resolve\n"
        "import simko_mlx_cli.train\n"
        "print(recipe_path('countdown-tiny')); resolve(None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "site/simko_mlx/recipes/countdown-tiny.yaml"


@needs_setuptools
def test_the_sdist_holds_what_developing_needs(sdist):
    for name in (*SHIPPED_FILES, "scripts/setup.sh", "tests/test_packaging.py", "cli/main.py"):
        assert (sdist / name).is_file(), name


def test_every_package_of_the_tree_is_listed():
    settings = PROJECT["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "simko_mlx").rglob("__init__.py")
    }
    assert set(settings["packages"]) == found | {"simko_mlx.recipes", "simko_mlx_cli"}


def test_each_linux_and_each_mac_gets_one_mlx():
    named = [item for item in PROJECT["project"]["dependencies"] if item.startswith("mlx")]
    assert [item.split(">")[0] for item in named] == ["mlx", "mlx[cpu]", "mlx-lm"]
    assert "darwin" in named[0] and "arm64" in named[0] and "linux" in named[1]


def test_the_version_of_the_package_is_the_projects():
    import simko_mlx

    assert (
        getattr(simko_mlx, "__version__", PROJECT["project"]["version"])
        == (PROJECT["project"]["version"])
    )
