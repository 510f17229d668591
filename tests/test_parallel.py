"""Two processes train the same model as one: with weights, gradients and optimizer states sharded by rows (FSDP2), and
with the item table divided (`--shard_items`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import run_python

# Every process also trains the whole model alone, on the batches of both. With divided items all read the same batches.
SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.training.sharding import shard_items, whole_items

STEPS, ITEMS = 20, 1001

def make_model():
    torch.manual_seed(0)
    config = BehaviorConfig(
        vocab_size=ITEMS, num_new_items=60, num_actions=5, num_time_gaps=6, hidden_size=16, num_attention_heads=2,
        num_hidden_layers=2, intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        convolution_size=3, use_positions=False,
    )
    return BertForNextBehavior(config).train()

def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: torch.randint(low, high, (4, 12), generator=generator)
    batch = {"input_ids": draw(64, ITEMS), "token_type_ids": draw(3, 5), "time_gap_ids": draw(2, 6)}
    labels = {"labels": draw(64, ITEMS), "action_labels": draw(3, 5), "time_labels": draw(2, 6)}
    labels["labels"][:, 3] = batch["input_ids"][:, 1]
    return batch, labels

def train(model, ranks, size):
    # With the usual eps, gradients that are nothing but rounding take whole steps.
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-6), []
    for step in range(STEPS):
        for rank in ranks:
            batch, labels = make_batch(step * size + rank)
            loss = model(**batch, **labels).loss
            (loss / len(ranks)).backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
alone, sharded, divided = make_model(), make_model(), make_model()
of_all = train(alone, range(size), size)
expected = of_all[rank::size]
shard_items(divided, torch.device("cpu"), size)
of_divided = train(divided, range(size), size)
divided_rows = len(divided.lm_head.weight.to_local())
fully_shard(sharded)
found = train(sharded, [rank], size)
rows = len(sharded.bert.embeddings.embed_tokens.weight.to_local())
whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
folders = [f"{sys.argv[1]}/{name}" for name in ("alone", "sharded", "divided")]
with whole_items(divided):
    if rank == 0:
        divided.save_pretrained(folders[2])
if rank == 0:
    alone.save_pretrained(folders[0])
    sharded = make_model()
    sharded.load_state_dict(whole)
    sharded.save_pretrained(folders[1])
    batch = make_batch(-1)[0]
    answers = [BertForNextBehavior.from_pretrained(folder).eval().predict(**batch, of="pair") for folder in folders]
    result = {
        "rows": [rows, divided_rows],
        "losses": [expected, found],
        "all_losses": [of_all, of_divided],
        "ids": [answer.item_ids.tolist() for answer in answers],
        "probabilities": [answer.probabilities.flatten().tolist() for answer in answers],
    }
    open(f"{sys.argv[1]}/result.json", "w").write(json.dumps(result))
dist.destroy_process_group()
"""


@pytest.mark.slow  # two interpreters that import everything
def test_a_model_or_its_items_sharded_over_two_processes_train_like_one(tmp_path: Path) -> None:
    (tmp_path / "sharded.py").write_text(SCRIPT)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    run_python(tmp_path, *launch, str(tmp_path / "sharded.py"), str(tmp_path), environment=environment, anew=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rows"] == [501, 501], "half of the item table"
    for alone, sharded in (result["losses"], result["all_losses"]):
        assert sharded == pytest.approx(alone, abs=1e-4)
    assert result["losses"][0][-1] < result["losses"][0][0]
    assert result["ids"][0] == result["ids"][1] == result["ids"][2]
    for probabilities in result["probabilities"][1:]:
        assert probabilities == pytest.approx(result["probabilities"][0], abs=1e-5)
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("alone", "divided")]
    assert files[0] == files[1]
