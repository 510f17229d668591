"""The forms a model is served in: quantized, exported, traced, compiled, with offloaded weights, and changed while it
answers. With item text and without, on several actions and times."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from torch import nn

from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.vocabulary import assemble

ITEMS, ACTIONS, SEARCH, LONGEST = [f"i{number}" for number in range(12)], ["view", "buy", "search"], 5, 10
LOGITS = ("action_logits", "item_logits", "time_logits", "path_logits")
HISTORIES = [
    [
        {"item": f"i{place * step % 13}", "action": ACTIONS[place % 2], "timestamp": 1_700_000_000 + 50 * step * place}
        for place in range(1, 2 + step)
    ]
    for step in range(1, 6)
]
# What the model is exported with, and what it is asked of other sizes.
FEW, MANY = HISTORIES[1:3], [*HISTORIES, [], [{"item": "of another shop"}]]


def make(text: bool) -> tuple[BertForNextBehavior, BehaviorTokenizer]:
    tokenizer = assemble(ITEMS, ACTIONS, [60.0, 3600.0], num_new_items=3, max_length=LONGEST)
    tokenizer.describe_items([1] * len(ITEMS), [None] * len(ITEMS))
    options: dict[str, Any] = {"actions_without_item": [SEARCH], "retired_items": [9], "item_temperature": 1.2}
    if text:
        options |= {"text_size": 6, "text_encoder": "an encoder", "text_encoder_size": 9, "text_columns": ["title"]}
    model = tiny_model(tokenizer, memory_share=0.1, memory_trend=0.2, **options)
    item_text = model.bert.embeddings.item_text
    if item_text is not None:
        item_text.vectors = torch.randint(-9, 10, item_text.vectors.shape, dtype=torch.int8)
        item_text.unit, item_text.components = torch.full((6,), 0.1), torch.randn(9, 6)
        item_text.vectors[: tokenizer.first_item_id] = 0
        model.associate_path.borrow(item_text)
    model.update_memory(**tokenizer(HISTORIES, return_tensors="pt"), pairs="all")
    return model.eval(), tokenizer


@pytest.fixture(scope="module", params=[False, True], ids=["ids", "text"])
def shop(request: pytest.FixtureRequest) -> tuple[BertForNextBehavior, BehaviorTokenizer]:
    return make(request.param)


# What takes seconds is tried with item text alone, unless slow tests are asked for.
BOTH = pytest.mark.parametrize("shop", [True, pytest.param(False, marks=pytest.mark.slow)], indirect=True)


@torch.no_grad()
def check(
    answer: Callable[..., Any],
    shop: tuple[BertForNextBehavior, BehaviorTokenizer],
    within: float,
    histories: Any = MANY,
) -> None:
    """The probabilities of `answer` are those of the model."""
    model, tokenizer = shop
    batch = tokenizer(histories, return_tensors="pt")
    expected, found = model(**batch), answer(**batch)
    for name in LOGITS:
        torch.testing.assert_close(found[name].exp(), expected[name].exp(), rtol=0, atol=within, msg=name)


@pytest.mark.filterwarnings("ignore")  # torch says that this moves to another library
def test_a_model_quantized_to_int8_answers(shop: tuple[BertForNextBehavior, BehaviorTokenizer]) -> None:
    model, tokenizer = shop
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    check(quantized, shop, within=0.02)
    predict = NextBehaviorPipeline(model=quantized, tokenizer=tokenizer, device="cpu")
    answers = predict([{"events": events} for events in MANY], paths=True)
    assert all(one["probability"] >= 0 for found in answers for one in found)
    with torch.no_grad():
        assert quantized.answer_tables(model.device) is quantized.answer_tables(model.device), "made once"


@pytest.mark.filterwarnings("ignore:While compiling")  # transformers notes hidden states on request
@BOTH
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_model_answers_batches_and_lengths_of_any_size(
    shop: tuple[BertForNextBehavior, BehaviorTokenizer], strict: bool
) -> None:
    model, tokenizer = shop
    batch = dict(tokenizer(FEW, return_tensors="pt"))
    sizes = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in batch}
    exported = torch.export.export(model, (), kwargs=batch, dynamic_shapes=sizes, strict=strict).module()
    check(exported, shop, within=1e-6)
    check(exported, shop, within=1e-6, histories=HISTORIES[:3])


@pytest.mark.filterwarnings("ignore")  # of what tracing does not follow, and that it gives way to export
def test_a_traced_model_answers_batches_of_any_size(shop: tuple[BertForNextBehavior, BehaviorTokenizer]) -> None:
    model, tokenizer = shop
    traced = torch.jit.trace(model, example_kwarg_inputs=dict(tokenizer(FEW, return_tensors="pt")), strict=False)
    check(traced, shop, within=1e-6)


@BOTH
def test_a_compiled_model_answers_in_one_graph_and_follows_the_memory(
    shop: tuple[BertForNextBehavior, BehaviorTokenizer],
) -> None:
    model, tokenizer = copy.deepcopy(shop[0]), shop[1]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        model(**tokenizer(FEW, return_tensors="pt"))
    check(compiled, (model, tokenizer), within=1e-6, histories=FEW)
    model.update_memory(**tokenizer(HISTORIES[:1], return_tensors="pt"))
    with torch.no_grad(), pytest.raises(Exception, match=r"call model.eval\(\)"):
        compiled(**tokenizer(FEW, return_tensors="pt"))
    check(compiled, (model.eval(), tokenizer), within=1e-6, histories=FEW)


def test_a_model_with_offloaded_weights_answers(shop: tuple[BertForNextBehavior, BehaviorTokenizer]) -> None:
    model, tokenizer = shop
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert offloaded.bert.embeddings.embed_tokens.weight.is_meta
    check(offloaded, shop, within=1e-6)
    batch = tokenizer(MANY, return_tensors="pt")
    found, expected = (one.predict(**batch) for one in (offloaded, model))
    torch.testing.assert_close(found.item_ids, expected.item_ids)


def with_adapter(model: BertForNextBehavior, targets: list[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft: `lm_head` is tied to the item table; nothing reads it
        return get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=targets))


def test_adapters_of_the_item_table_and_of_the_text_projection_take_part_at_once() -> None:
    model, tokenizer = make(text=True)
    batch = tokenizer(FEW, return_tensors="pt")
    before: Any = model.predict(**batch, of="item").probabilities
    for targets in (["embed_tokens"], ["project"]):
        adapted = with_adapter(model, targets).eval()
        with torch.no_grad():
            assert torch.equal(adapted.predict(**batch, of="item").probabilities, before)
            for name, weight in adapted.named_parameters():
                if "lora_" in name:
                    weight.normal_()
            after = adapted.predict(**batch, of="item").probabilities
        assert not torch.allclose(after, before, atol=1e-3), targets
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged.predict(**batch, of="item").probabilities, after)
    adapted = with_adapter(model, ["embed_tokens"])
    with pytest.raises(ValueError, match=r"expected nn\.Embedding: merge the adapter"):
        adapted.add_items(tokenizer, ["new"])


# -- changes while a model answers -------------------------------------------------------------------------------------


def key_of(answers: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["action"], one["item"], round(one["probability"], 5)) for one in answers]


@pytest.mark.parametrize("text", [False, True], ids=["ids", "text"])
def test_every_answer_beside_changes_is_that_of_the_model_before_or_after_one(text: bool) -> None:
    model, tokenizer = make(text)
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    # The added items are in the history: an answer that mixed two vocabularies would show.
    asked = {"events": [*HISTORIES[4], *({"item": f"new{number}", "action": "view"} for number in range(5))]}
    changes: list[Callable[[], Any]] = []
    for number in range(5):
        row = {"item_id": f"new{number}", "title": f"lamp {number}"}
        changes += [
            partial(model.add_items, tokenizer, [row], embed=lambda texts: torch.ones(len(texts), 9)),
            partial(model.update_memory, **tokenizer(HISTORIES[:2], return_tensors="pt")),
            partial(model.retire_items, tokenizer, [f"i{number}"]),
            partial(model.update_memory, **tokenizer(HISTORIES[2:], return_tensors="pt"), pairs="all"),
        ]
    states, given, errors = [key_of(predict(asked, top_k=40))], list[list[tuple[Any, ...]]](), list[Exception]()
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                given.append(key_of(predict(asked, top_k=40)))
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for change in changes:
        change()
        states.append(key_of(predict(asked, top_k=40)))
    done.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert len(given) > 10
    assert [answers for answers in given if answers not in states] == []


def test_predict_and_decoding_beside_added_items_raise_nothing() -> None:
    model, tokenizer = make(text=False)
    done, errors = threading.Event(), list[Exception]()

    def read() -> None:
        try:
            while not done.is_set():
                batch = tokenizer([*HISTORIES, [{"item": "new0"}, {"item": "new9"}]], return_tensors="pt")
                ranked: Any = model.predict(**batch, top_k=100, of="item")
                for index in ranked.item_ids.unique().tolist():
                    tokenizer.decode_item(index)
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(40):
        model.add_items(tokenizer, [f"new{number}"])
    done.set()
    for reader in readers:
        reader.join()
    assert errors == []
