"""Golden answers: what a model says about fixed histories, here and in a process that knows nothing of this project.

    expected = golden_answers(model, tokenizer, histories)
    found = answers_in_a_clean_process("ana/shop", histories, environment)      # or a folder
    check_answers(found, expected)

The clean process has `python -P`, another folder, a fresh cache, and loads the model in the four ways users do: through
`pipeline`, through `AutoModel` and `AutoTokenizer`, and through the repository's `handler.py` as Inference Endpoints
load it (`check_and_register_custom_pipeline_from_directory` of huggingface/huggingface-inference-toolkit).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.tokenization_behavior import BehaviorTokenizer

Answers = dict[str, list[list[dict[str, Any]]]]

TOP_K = 5
TOLERANCE = 1e-4
# What a repository's histories are made of: the days and minutes between events do not matter, only that they differ.
START, STEPS = 1_700_000_000, (0, 60, 3_700, 90_000)
UNKNOWN_ITEM = "an item that was never in the log"
# How long a download and four loads may take, in seconds.
PATIENCE = 1800

CLEAN_PROCESS = """
import importlib.util, json, sys
from pathlib import Path
from transformers import AutoModel, AutoTokenizer, pipeline

source, request = sys.argv[1], json.loads(sys.argv[2])
histories, top_k = request["histories"], request["top_k"]
revision = {} if Path(source).is_dir() else {"revision": request["revision"]}
inputs = [{"events": history} for history in histories]
predict = pipeline("next-behavior", model=source, trust_remote_code=True, device="cpu", **revision)
answers = {"pipeline": predict(inputs, top_k=top_k)}

model = AutoModel.from_pretrained(source, trust_remote_code=True, **revision).eval()
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True, **revision)
ranked = model.predict(**tokenizer(histories, return_tensors="pt"), top_k=top_k)
answers["model"] = [
    [
        {"action": tokenizer.decode_action(action), "item": tokenizer.decode_item(item), "probability": probability}
        for item, action, probability in zip(*row)
    ]
    for row in zip(ranked.item_ids.tolist(), ranked.action_ids.tolist(), ranked.probabilities.tolist())
]

folder = source
if not Path(source).is_dir():
    from huggingface_hub import snapshot_download
    folder = snapshot_download(source, **revision)
sys.path.insert(0, str(folder))
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", str(Path(folder) / "handler.py"))
handler = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = handler
spec.loader.exec_module(handler)
answers["handler"] = handler.EndpointHandler(str(folder))({"inputs": inputs, "parameters": {"top_k": top_k}})

for part in (predict, model, tokenizer):
    assert type(part).__module__.startswith("transformers_modules"), f"{type(part)} is not the repository's own code"
print("ANSWERS " + json.dumps(answers))
"""

# The adapter in both ways that users have, and how many tokens its base knows.
CLEAN_ADAPTER_PROCESS = """
import json, sys
from pathlib import Path
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

source, request = sys.argv[1], json.loads(sys.argv[2])
base = json.loads((Path(source) / "adapter_config.json").read_text())["base_model_name_or_path"]
tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=True)
on_base = PeftModel.from_pretrained(AutoModel.from_pretrained(base, trust_remote_code=True), source)
answers = {}
for way, model in (("model", on_base), ("auto", AutoModel.from_pretrained(source, trust_remote_code=True))):
    ranked = model.eval().predict(**tokenizer(request["histories"], return_tensors="pt"), top_k=request["top_k"])
    answers[way] = [
        [
            {"action": tokenizer.decode_action(action), "item": tokenizer.decode_item(item), "probability": probability}
            for item, action, probability in zip(*row)
        ]
        for row in zip(ranked.item_ids.tolist(), ranked.action_ids.tolist(), ranked.probabilities.tolist())
    ]
print("ANSWERS " + json.dumps(answers))
"""


def golden_histories(tokenizer: BehaviorTokenizer) -> list[list[dict[str, Any]]]:
    """Histories made from the vocabulary alone, no user's: the most frequent items with every action in turn, one that
    repeats, one with an unknown item and an event without an item, and an empty one."""
    items, actions = tokenizer.item_vocabulary[:4], tokenizer.action_vocabulary
    frequent = [
        {"item": item, "action": actions[index % len(actions)], "timestamp": START + STEPS[index]}
        for index, item in enumerate(items)
    ]
    unknown = [
        {"item": UNKNOWN_ITEM, "action": actions[0], "timestamp": START},
        {"action": actions[-1], "timestamp": START + 60},
    ]
    histories = [frequent[:2], [*frequent, *frequent[:1]], [*frequent[:1], *unknown], []]
    if tokenizer.has_time:
        return histories
    return [[{key: event[key] for key in event if key != "timestamp"} for event in one] for one in histories]


def golden_answers(model: PreTrainedModel, tokenizer: BehaviorTokenizer, histories: list[Any]) -> Answers:
    """The best answers of this process, as the pipeline gives them and as `predict` does."""
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    answers = predict([{"events": history} for history in histories], top_k=TOP_K)
    return {"pipeline": answers, "handler": answers, "model": ranked_by_model(model, tokenizer, histories)}


def ranked_by_model(model: Any, tokenizer: BehaviorTokenizer, histories: list[Any]) -> list[list[dict[str, Any]]]:
    """What `model.predict` ranks first, in the user's words; None for an item that the vocabulary does not know."""
    ranked = model.predict(**tokenizer(histories, return_tensors="pt"), top_k=TOP_K)
    rows = zip(ranked.item_ids.tolist(), ranked.action_ids.tolist(), ranked.probabilities.tolist(), strict=True)
    return [
        [
            {"action": tokenizer.decode_action(action), "item": tokenizer.decode_item(item), "probability": probability}
            for item, action, probability in zip(*row, strict=True)
        ]
        for row in rows
    ]


def answers_in_a_clean_process(
    source: str,
    histories: list[Any],
    environment: Mapping[str, str],
    revision: str = "main",
    is_adapter: bool = False,
) -> Answers:
    """Golden answers of the model at `source` (a folder or a Hub id) in a process of its own, with an empty cache
    unless `environment` names one (HF_HOME).

    Args:
        is_adapter: `source` is the folder of an adapter; its base is loaded by the Hub id it names.

    Raises:
        ValueError: it does not load there; with the last lines of what it said.
    """
    request = json.dumps({"histories": histories, "top_k": TOP_K, "revision": revision})
    code = CLEAN_ADAPTER_PROCESS if is_adapter else CLEAN_PROCESS
    with tempfile.TemporaryDirectory(prefix="publish-check-") as elsewhere:
        done = subprocess.run(
            [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", code, source, request],
            cwd=elsewhere,
            env={"HF_HOME": elsewhere, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    printed = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    if done.returncode or not printed:
        said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise ValueError(
            f"{source} does not load in a clean process (exit status {done.returncode}); expected answers. It said:\n"
            f"  {said}"
        )
    return json.loads(printed[-1].removeprefix("ANSWERS "))


def check_answers(found: Answers, expected: Answers, where: str) -> None:
    """ValueError unless the same answers come, in the same order and with the same probabilities, in every way of
    loading that was tried."""
    for way, histories in found.items():
        for row, (answers, wanted) in enumerate(zip(histories, expected[way], strict=True)):
            names, wanted_names = ([(a["action"], a["item"]) for a in one] for one in (answers, wanted))
            chances, wanted_chances = ([a["probability"] for a in one] for one in (answers, wanted))
            apart = max((abs(a - b) for a, b in zip(chances, wanted_chances, strict=False)), default=0.0)
            if names != wanted_names or apart > TOLERANCE:
                raise ValueError(
                    f"{where} answers golden history {row} through {way} with {names[:3]} (probabilities up to "
                    f"{apart:.2g} apart); expected {wanted_names[:3]}."
                )
