"""What a run records of its machine and its data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl
import torch

from next_behavior.data.provenance import content_hashes, provenance


def test_a_file_is_known_by_the_hash_that_sha256sum_gives(tiny_log_csv: Path) -> None:
    digest = hashlib.sha256(tiny_log_csv.read_bytes()).hexdigest()
    assert content_hashes(tiny_log_csv) == {"tiny_log.csv": digest}


def test_every_file_of_a_folder_counts(tmp_path: Path) -> None:
    for name in ("a/one.parquet", "b/two.parquet"):
        (tmp_path / name).parent.mkdir()
        pl.DataFrame({"name": [name]}).write_parquet(tmp_path / name)
    hashes = content_hashes(tmp_path)
    assert list(hashes) == ["a/one.parquet", "b/two.parquet"]
    assert len(set(hashes.values())) == 2


def test_the_machine_is_described_and_not_named() -> None:
    found = provenance("ana/shop-log")
    assert found["events_sha256"] == {}
    assert f"{torch.get_num_threads()} thread" in found["machine"]["description"]
    without_build = found["versions"]["torch"].split("+")[0]
    assert torch.__version__.split("+")[0] == without_build
