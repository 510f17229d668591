"""Fewer dimensions: the principal components of text embeddings.

reduction = fit_reduction(embeddings, 256)
rows = reduce_embeddings(embeddings, reduction)        # (N, 256) float16, mean squared norm 1
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Rows that are worked on at a time where a whole table in float32 would be too much.
CHUNK = 65_536


class Reduction(NamedTuple):
    """`(embedding - mean) @ components`, which has the mean squared norm 1 over the rows it was fitted on.

    Attributes:
        mean: (D,) float32.
        components: (D, d) float32, orthogonal columns of one length, the direction of most variance first.
    """

    mean: np.ndarray
    components: np.ndarray


def fit_reduction(embeddings: np.ndarray, dimensions: int = 256) -> Reduction:
    """Principal components of (N, D) embeddings, from their covariance: summed up CHUNK rows at a time in float64.

    Rows of zeros are items without text and do not count. There are min(dimensions, D) components; a component is
    turned so that its largest entry is positive, so that one table gives one answer.

    Raises:
        ValueError: fewer than two rows with text, or all of them the same.
    """
    count, total = 0, np.zeros(embeddings.shape[1])
    products = np.zeros((embeddings.shape[1], embeddings.shape[1]))
    for start in range(0, len(embeddings), CHUNK):
        rows = embeddings[start : start + CHUNK].astype(np.float32)
        rows = rows[rows.any(axis=1)]
        count, total = count + len(rows), total + rows.sum(axis=0, dtype=np.float64)
        products += rows.T @ rows
    mean = total / max(count, 1)
    covariance = products / max(count, 1) - np.outer(mean, mean)
    variances, vectors = np.linalg.eigh(covariance)  # ascending
    variances, vectors = variances[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    spread = float(variances.sum())
    if count < 2 or spread < 1e-7:
        raise ValueError(
            f"got {count:,} embedded texts with a spread of {spread:.1e}; expected at least two that differ: check "
            "which columns are read as text"
        )
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return Reduction(mean.astype(np.float32), (vectors * signs / np.sqrt(spread)).astype(np.float32))


def reduce_embeddings(embeddings: np.ndarray, reduction: Reduction) -> np.ndarray:
    """(N, D) embeddings -> (N, d) float16; rows of zeros, which have no text, stay zeros."""
    reduced = np.zeros((len(embeddings), reduction.components.shape[1]), dtype=np.float16)
    for start in range(0, len(embeddings), CHUNK):
        rows = embeddings[start : start + CHUNK].astype(np.float32)
        has_text = rows.any(axis=1)
        reduced[start : start + CHUNK][has_text] = (rows[has_text] - reduction.mean) @ reduction.components
    return reduced
