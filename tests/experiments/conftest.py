from __future__ import annotations

import pytest
from small_experiments import FLOAT, Place, experiment, write_pictures

from srquant.experiments import train


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    pictures = write_pictures(root / "pictures", 3)
    validation = write_pictures(root / "validation", 1, seed=1)
    benchmark = write_pictures(root / "SetA" / "HR", 2, seed=2).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        trained = train(experiment(FLOAT), root / "float", data=[pictures], validation=validation, accelerator="cpu")
    assert trained.file is not None
    return Place(pictures, validation, benchmark, trained.file)
