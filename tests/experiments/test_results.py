from __future__ import annotations

from pathlib import Path

import pytest

from srquant.errors import UserError
from srquant.experiments.results import COLUMNS, add_result, read_results

ROW = dict.fromkeys(COLUMNS, "") | {"experiment": "010-a", "placement": 'x, "y"\nz'}


def test_rows_are_added_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    assert read_results(path) == []
    add_result(path, ROW)
    add_result(path, {**ROW, "experiment": "020-b", "Set5_psnr": "30.1"})
    add_result(path, {**ROW, "experiment": "030-c", "Set14_psnr": "27.1"})
    rows = read_results(path)
    assert [row["experiment"] for row in rows] == ["010-a", "020-b", "030-c"]
    assert [(row["Set5_psnr"], row["Set14_psnr"]) for row in rows] == [("", ""), ("30.1", ""), ("", "27.1")]
    assert rows[0]["placement"] == ROW["placement"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_row_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    add_result(path, ROW)
    add_result(path, {**ROW, "experiment": "020-b"})
    add_result(path, {**ROW, "steps": "7"})
    assert [(row["experiment"], row["steps"]) for row in read_results(path)] == [("020-b", ""), ("010-a", "7")]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "experiment,steps\n010-a\n", "experiment\n010-a,3\n"])
def test_another_table_is_refused_and_kept(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"results.csv' is no table of results"):
        add_result(path, ROW)
    assert path.read_text() == content
