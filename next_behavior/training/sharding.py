"""The item table divided among the processes of a run, row by row (`--shard_items`), with its gradients, moments and
averages. All processes train on the same batches, and everything else is the same in each.

    shard_items(model, device, processes)        # before the optimizer is made
    with whole_items(model): ...                 # questions, and save_pretrained

Torch's `RowwiseParallel` looks items up, and the softmax is computed where the rows lie (`model/losses.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import PAD


def shard_items(model: BertForNextBehavior, device: torch.device, processes: int) -> None:
    """Moves the model to the device, without the rows of the item table that other processes hold.

    Raises:
        ValueError: the model reads item text and has a softmax over all items.
    """
    config = model.config
    samples = 0 < config.num_negatives < config.vocab_size - config.first_item_id
    if model.bert.embeddings.item_text is not None and not samples:
        raise ValueError(
            "--shard_items with item text needs sampled negatives, and this model has a softmax over all items: add "
            "--num_negatives 4096 (fewer than there are items), or leave out --items or --shard_items."
        )
    items = model.get_input_embeddings()
    assert isinstance(items, nn.Embedding)
    items.padding_idx = None  # it would be taken for a row of each shard; padding gets no gradient anyway
    mesh = init_device_mesh(device.type, (processes,))
    parallelize_module(items, mesh, RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()))
    put_items(model, items)
    module: nn.Module = model
    module.to(device)


@contextmanager
def whole_items(model: BertForNextBehavior) -> Iterator[None]:
    """As long as it lasts, each process holds the whole item table, which answers read and `save_pretrained` writes.
    Nothing changes where it is not sharded; else all processes have to come here."""
    sharded = model.get_input_embeddings()
    # With LoRA the table may be wrapped for its new rows.
    weight = sharded.weight if isinstance(sharded, nn.Embedding) else None
    if not isinstance(weight, DTensor):
        yield
        return
    assert isinstance(sharded, nn.Embedding)
    whole = nn.Embedding.from_pretrained(weight.full_tensor().detach(), padding_idx=PAD)
    put_items(model, whole)
    try:
        yield
    finally:
        put_items(model, sharded)


def put_items(model: BertForNextBehavior, items: nn.Embedding) -> None:
    model.set_input_embeddings(items)
    model.lm_head.weight = items.weight


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows that lie in this process; they share the tensor's memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, of a sharded one in the memory of the CPU; all processes have to come here."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """A whole tensor divided as `sharded` is; itself where that is whole."""
    if not isinstance(sharded, DTensor) or tensor.shape != sharded.shape:
        return tensor
    return distribute_tensor(tensor.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


@torch.no_grad()
def make_the_rest_equal(model: BertForNextBehavior) -> None:
    """Gives all processes the main one's weights outside a sharded item table. They compute the same, but a GPU may add
    in another order, and they have to come to the same decisions."""
    if isinstance(model.lm_head.weight, DTensor):
        for weight in model.parameters():
            if not isinstance(weight, DTensor):
                distributed.broadcast(weight, src=0)
