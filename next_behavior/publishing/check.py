"""Golden answers: what a model predicts for fixed histories, here and in a process that knows nothing of this project.

    expected = golden_answers(model, tokenizer, histories)
    answers = answers_in_a_clean_process("ana/shop", histories, environment)      # or a folder
    check_answers(answers, expected, "ana/shop")

The clean process runs `python -P` in another folder with an empty cache. It loads the model in the ways that users do:
through `pipeline`, through `AutoModel` and `AutoTokenizer`, and through the repository's `handler.py` as Inference
Endpoints load it (`check_and_register_custom_pipeline_from_directory` of huggingface/huggingface-inference-toolkit).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from next_behavior.data.shown import MOST_CHARACTERS
from next_behavior.model import modeling_behavior
from next_behavior.model.configuration_behavior import CODE_FILES
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.publishing.hub import SendError, content_ids, folder_files

Answers = dict[str, list[list[dict[str, Any]]]]  # {way of loading: answers to each history, best first}

TOP_K = 5
TOLERANCE = 1e-4
# Times of the golden histories, in seconds. They only have to differ.
FIRST_TIME, STEPS = 1_700_000_000, (0, 60, 3_700, 90_000)
UNKNOWN_ITEM = "an item that was never in the log"
# How long a download and four loads may take, in seconds.
PATIENCE = 1800
OFFLINE = {"HF_HUB_OFFLINE": "1"}

# What `model.predict` ranks first, in the user's ids; as text, because the clean processes cannot import it.
RANKED = """
def ranked_by_model(model, tokenizer, histories, top_k):
    ranked = model.predict(**tokenizer(histories, return_tensors="pt"), top_k=top_k)
    return [
        [
            {"action": tokenizer.decode_action(action), "item": tokenizer.decode_item(item), "probability": probability}
            for item, action, probability in zip(*row)
        ]
        for row in zip(ranked.item_ids.tolist(), ranked.action_ids.tolist(), ranked.probabilities.tolist())
    ]
"""
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
answers["model"] = ranked_by_model(model, tokenizer, histories, top_k)

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
# The adapter in both ways that users load it.
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
    answers[way] = ranked_by_model(model.eval(), tokenizer, request["histories"], request["top_k"])
print("ANSWERS " + json.dumps(answers))
"""


def short(names: list[str]) -> list[str]:
    """The names that a card can show whole; all of them if it can show none."""
    return [name for name in names if len(name) <= MOST_CHARACTERS] or names


def golden_histories(tokenizer: BehaviorTokenizer) -> list[list[dict[str, Any]]]:
    """Histories made from the vocabulary alone, not from any user's.

    The most frequent items with every action in turn; one that repeats an item; one with an unknown item and an event
    without an item; an empty one.
    """
    items, actions = short(tokenizer.item_vocabulary)[:4], short(tokenizer.action_vocabulary)
    frequent = [
        {"item": item, "action": actions[index % len(actions)], "timestamp": FIRST_TIME + STEPS[index]}
        for index, item in enumerate(items)
    ]
    unknown = [
        {"item": UNKNOWN_ITEM, "action": actions[0], "timestamp": FIRST_TIME},
        {"action": actions[-1], "timestamp": FIRST_TIME + 60},
    ]
    histories = [frequent[:2], [*frequent, *frequent[:1]], [*frequent[:1], *unknown], []]
    if tokenizer.has_time:
        return histories
    return [[{key: event[key] for key in event if key != "timestamp"} for event in one] for one in histories]


def golden_answers(model: PreTrainedModel, tokenizer: BehaviorTokenizer, histories: list[Any]) -> Answers:
    """The best answers of this process, through the pipeline and through `model.predict`."""
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    answers = predict([{"events": history} for history in histories], top_k=TOP_K)
    return {"pipeline": answers, "handler": answers, "model": ranked_by_model(model, tokenizer, histories)}


def contributions_to_first_answer(
    model: PreTrainedModel, tokenizer: BehaviorTokenizer, history: list[Any]
) -> list[float]:
    """What each event of a history contributes to the first answer."""
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    answers = predict({"events": history}, top_k=1, explain=True)
    return answers[0]["contributions"] if answers else []


def ranked_by_model(model: Any, tokenizer: BehaviorTokenizer, histories: list[Any]) -> list[list[dict[str, Any]]]:
    """What `model.predict` ranks first, in the user's ids; None for an item that the vocabulary does not know."""
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
    """Golden answers of a model in a process of its own.

    Args:
        source: a folder or a Hub id.
        environment: all its variables. Without HF_HOME the cache is empty.
        is_adapter: `source` is the folder of an adapter; its base is loaded by the Hub id it names.

    Raises:
        ValueError: it does not load there; with the last lines of what was printed.
    """
    request = json.dumps({"histories": histories, "top_k": TOP_K, "revision": revision})
    code = RANKED + (CLEAN_ADAPTER_PROCESS if is_adapter else CLEAN_PROCESS)
    with tempfile.TemporaryDirectory(prefix="publish-check-") as elsewhere:
        done = subprocess.run(
            # -B: no compiled code may lie in the folder afterwards, for it is what is sent.
            [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-B", "-c", code, source, request],
            cwd=elsewhere,
            env={"HF_HOME": elsewhere, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    printed = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    if done.returncode or not printed:
        last_lines = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise ValueError(
            f"{source} does not load in a clean process (exit status {done.returncode}); expected answers. It printed:"
            f"\n  {last_lines}"
        )
    return json.loads(printed[-1].removeprefix("ANSWERS "))


def check_answers(answers: Answers, expected: Answers, where: str) -> None:
    """ValueError unless every way of loading gave the expected answers, in their order and with their probabilities."""
    for way, histories in answers.items():
        for row, (ranked, wanted) in enumerate(zip(histories, expected[way], strict=True)):
            names, wanted_names = ([(a["action"], a["item"]) for a in one] for one in (ranked, wanted))
            chances, wanted_chances = ([a["probability"] for a in one] for one in (ranked, wanted))
            apart = max((abs(a - b) for a, b in zip(chances, wanted_chances, strict=False)), default=0.0)
            if names != wanted_names or apart > TOLERANCE:
                raise ValueError(
                    f"{where} answers golden history {row} through {way} with {names[:3]} (probabilities up to "
                    f"{apart:.2g} apart); expected {wanted_names[:3]}."
                )


# ----------------------------------------------------------------------------------------------------------------------
# The checks of a publication
# ----------------------------------------------------------------------------------------------------------------------


def check_same_with_its_own_code(folder: Path, model: BertForNextBehavior, tokenizer: BehaviorTokenizer) -> list[str]:
    """Compares the model's answers by the code that is published, this installation's, with those by its own code.

    Returns:
        The code files of the folder that another version of this project wrote; empty if there are none.

    Raises:
        ValueError: the answers differ, so what was evaluated would not be what is published.
    """
    here = Path(modeling_behavior.__file__).parent
    others = [
        name
        for name in CODE_FILES
        if (folder / name).exists() and (folder / name).read_bytes() != (here / name).read_bytes()
    ]
    if not others:
        return []
    histories = golden_histories(tokenizer)
    answers = answers_in_a_clean_process(str(folder), histories, OFFLINE)
    try:
        check_answers(answers, golden_answers(model, tokenizer, histories), str(folder))
    except ValueError as error:
        raise ValueError(
            f"got {folder} with other versions of {', '.join(others)}, which answer differently from those installed "
            "here; expected the same answers: publish with the version of this project that trained the model, or "
            f"train it again with this one. ({error})"
        ) from error
    return others


def check_folder(staged: Path, histories: list[Any], expected: Answers) -> None:
    """ValueError unless the folder loads in a clean process, offline, and gives the expected answers."""
    check_answers(answers_in_a_clean_process(str(staged), histories, OFFLINE), expected, str(staged))


def hub_environment(token: str | None) -> dict[str, str]:
    """This process's variables for a child that uses the Hub: without Python's settings and without a cache."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        variables.pop(name, None)
    return variables if token is None else {**variables, "HF_TOKEN": token}


def check_sent(
    repo_id: str, revision: str, token: str, staged: Path, histories: list[Any], expected: Answers
) -> list[str]:
    """Loads what was sent by its Hub id, in a clean process with an empty cache, and compares answers and files.

    Returns:
        The files that were downloaded.

    Raises:
        SendError: it does not load, answers differently, or a file came back with another content.
    """
    with tempfile.TemporaryDirectory(prefix="publish-verify-") as home:
        failure = None
        try:
            environment = {**hub_environment(token), "HF_HOME": home}
            check_answers(answers_in_a_clean_process(repo_id, histories, environment, revision), expected, repo_id)
        except ValueError as error:
            failure = error
        sent = folder_files(staged)
        snapshots = [folder_files(snapshot) for snapshot in Path(home).glob("hub/*/snapshots/*")]
        downloaded = {name: path for files in snapshots for name, path in files.items()}
        changed = [
            name for name, path in downloaded.items() if name in sent and content_ids(path) != content_ids(sent[name])
        ]
    if changed:
        raise SendError(
            f"{', '.join(changed)} of {repo_id} came back with another content than was sent: corrupted on the way "
            "down, or changed by somebody. The commit is as it was sent; run again with --verify."
        )
    if failure is not None:
        raise SendError(f"sent, but {failure}") from failure
    return list(downloaded)
