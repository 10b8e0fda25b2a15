"""What is released: wheel and source archive hold the right files, and the wheel works where nothing else is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import recsys

ROOT = Path(__file__).parents[1]
# Where modules of the checkout stand in the package.
PLACES = {"recsys/": "recsys/", "kernels/": "recsys/kernels/", "data/": "recsys/data/",
          "experiments/": "recsys/experiments/"}
BUILD = ("import os, sys; from setuptools import build_meta as b; out = sys.argv[1]; "
         "print(b.build_sdist(out)); print(b.build_wheel(out))")


def _tracked() -> list[str]:
    found = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                           capture_output=True, text=True)
    return [name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


def _build(source: Path, out: Path) -> tuple[Path, Path]:
    out.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True, timeout=300)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source archive and wheel of a copy of what git has, so that nothing of the working folder slips in."""
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    for name in _tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    return _build(source, folder / "dist")


def _wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n for n in archive.namelist() if ".dist-info/" not in n}


def test_the_version_stands_in_one_place() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == recsys.__version__
    project = (ROOT / "pyproject.toml").read_text().split("[project.opt")[0]
    assert "version" not in re.findall(r"^(\w+) = ", project, re.M)


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, wheel = built
    wanted = set()
    for name in _tracked():
        for place, inside in PLACES.items():
            if name.startswith(place) and Path(name).suffix != ".md":
                wanted.add(inside + name.removeprefix(place))
    compiled = {n for n in _wheel_names(wheel) if n.startswith("recsys/kernels/native/_dot_interaction.")}
    assert len(compiled) == (shutil.which("g++") is not None)  # without a compiler the installation goes on
    assert _wheel_names(wheel) ^ wanted == compiled
    assert wheel.name.startswith(f"recsys_ads-{recsys.__version__}-cp")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "again", filter="data")
    unpacked = next((tmp_path / "again").iterdir())
    assert {"README.md", "LICENSE", "pyproject.toml"} <= {p.name for p in unpacked.iterdir()}
    assert not (unpacked / "work").exists()
    _, second = _build(unpacked, tmp_path / "dist")
    assert _wheel_names(second) == _wheel_names(wheel)  # the archive is enough to build from


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_without_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, wheel = built
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next(home.glob("lib/python*/site-packages"))
    # The dependencies of this environment, not its recsys: a path alone does not run an editable install's hook.
    (site / "dependencies.pth").write_text("\n".join(
        dict.fromkeys(p for p in (sysconfig.get_path("purelib"), *sys.path) if p.endswith("site-packages"))))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "-q", "--no-deps",
                    "--disable-pip-version-check", str(wheel)], check=True, timeout=300)
    command = home / "bin" / "recsys"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run([str(command), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
                              timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    code = "import recsys, recsys.kernels; print(recsys.__file__)"
    where = subprocess.run([str(home / "bin" / "python"), "-c", code], cwd=tmp_path, env=environment,
                           capture_output=True, text=True, check=True).stdout
    assert str(home) in where
    assert run("--version").split()[-1] == recsys.__version__
    assert "internet_scale" in run("plan", "internet_scale")
    small = ["--set", "data.simulate={users: 200, advertisers: 20, ads: 120, requests: 4000}", "--set",
             "encoders={words: {kind: hashed, dim: 64}}", "--set", "arms={ids: {}, words: {content: words}}", "--set",
             "baseline=ids", "--set", "training.epochs=1", "--set", "training.ensemble=1"]
    run("experiment", "marketplace", "--out", "run", *small)
    assert (tmp_path / "run" / "report" / "lift.html").stat().st_size > 10_000
