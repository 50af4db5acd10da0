"""The walls of the house that no linter checks; the imports between rooms are import-linter's part."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import srquant
from srquant.evaluation.verification import drawn_picture
from srquant.networks import NETWORKS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "srquant"
MODULES = sorted(SOURCE.rglob("*.py"))
DRAWERS = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "PIL", "imagecodecs")


def rooms() -> list[str]:
    """The packages and modules directly in srquant."""
    packages = [path.parent.name for path in SOURCE.glob("*/__init__.py")]
    return sorted(packages + [path.stem for path in SOURCE.glob("*.py") if path.stem not in ("__init__", "__main__")])


def test_modules_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_there_is_no_drawer_for_everything():
    assert not [path for path in MODULES if path.name in DRAWERS]


def test_every_module_says_what_it_is():
    assert not [path for path in MODULES if not path.read_text().startswith('"""')]


@pytest.mark.parametrize("module", ["srquant", "srquant.cli"])
def test_heavy_packages_are_imported_when_needed(module: str):
    program = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_every_public_name_is_there():
    assert [name for name in srquant.__all__ if not hasattr(srquant, name)] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_file_with_its_paper_and_its_tests(name: str):
    network = NETWORKS[name]
    assert network.name == name
    assert network.__module__ == f"srquant.networks.{name}"
    assert "https://" in (sys.modules[network.__module__].__doc__ or "")
    tests = (ROOT / "tests" / "networks").glob("*.py")
    assert any(network.__name__ in path.read_text() for path in tests)


@pytest.mark.parametrize("room", rooms())
def test_a_room_stands_in_the_picture_of_the_architecture(room: str):
    assert f"`{room}" in (ROOT / "docs" / "architecture.md").read_text()


def test_the_network_of_the_contribution_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "tinysr.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(tmp_path)
    guide = importlib.import_module("tinysr")
    config = guide.TinySRConfig(scale=3, width=4)
    network = guide.TinySR(config).eval()
    assert guide.TinySR.recognise(network.state_dict()) == config
    Image.fromarray(drawn_picture(3)).save(tmp_path / "drawn.png")
    quantized = srquant.quantize(network, tmp_path)
    assert srquant.open_engine(quantized, "torch").run(drawn_picture(3, 8, 9)).shape == (24, 27, 3)
