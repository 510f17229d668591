"""Bundles of models for tests: exported once, or in memory with the network left in torch, which takes no export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.serving import predictor
from next_behavior.serving.bundle import open_bundle, write_manifest
from next_behavior.serving.golden import difference_between
from next_behavior.serving.network import INPUTS, ServedNetwork
from next_behavior.serving.write_bundle import write_tables


class TorchNetwork:
    """Stands in for the exported network."""

    def __init__(self, model: BertForNextBehavior) -> None:
        self.network = ServedNetwork(model).eval()

    @torch.no_grad()
    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [out.numpy() for out in self.network(*(torch.from_numpy(np.array(feed[name])) for name in INPUTS))]


def predictor_in_memory(model: BertForNextBehavior, tokenizer: BehaviorTokenizer, folder: Path) -> predictor.Predictor:
    """A predictor of a model, its tables written to `folder`, without an export."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_tables(model, tokenizer, folder, "in memory")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.save_vocabulary(str(folder))
    write_manifest(folder)

    def session(*_: Any, **__: Any) -> TorchNetwork:
        return TorchNetwork(model)

    with mock.patch.object(predictor.onnxruntime, "InferenceSession", session):
        return predictor.Predictor(open_bundle(folder))


def check_explained(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Equal answers with equal explanations, to 1e-4."""
    assert difference_between(found, wanted) is None
    expected = {(answer["action"], answer["item"]): answer for answer in wanted}
    for answer in found:
        same = expected.get((answer["action"], answer["item"]))
        if same is None:  # as probable as the last one
            continue
        assert set(answer) == set(same)
        np.testing.assert_allclose(answer["contributions"], same["contributions"], atol=1e-4)
        np.testing.assert_allclose(answer["importance"], same["importance"], atol=1e-4)
        assert rounded(answer["because"]) == rounded(same["because"])


def rounded(value: Any) -> Any:
    """Numbers to be compared to 1e-4, which `pytest.approx` does not look for in lists of dicts."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
