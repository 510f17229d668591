"""What the service reads and writes, as types: they check a request and make the OpenAPI document.

Decoding is strict: no text stands for a number, `true` is no number, and a field that is not listed is an error. Of a
key that stands twice in an object the last one counts, as in RFC 8259. An event of a history is a dict, because that is
what the predictor reads; fields of it that are left out are left out there, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from next_behavior.model.coverage import HIGHEST, LOWEST

# Bytes of an id in UTF-8. `Meta` counts characters; `within_bytes` counts the rest.
MOST_ID_BYTES = 256
# Events of a history in a request, and events in a batch to store.
MOST_HISTORY = 512
MOST_EVENTS = 1000
MOST_ANSWERS = 100
MOST_ALLOWED = 10_000
# Answers in a prediction set: one of a large catalog may hold nearly all of it.
MOST_IN_SET = 10_000
# Answers that are explained.
MOST_EXPLAINED = 20
# The predictor's own limit is wider: this is the first whole number that JavaScript cannot hold.
LARGEST_TIME = 2**53

Text = Annotated[str, Meta(max_length=MOST_ID_BYTES)]
Id = Annotated[str, Meta(min_length=1, max_length=MOST_ID_BYTES, description="at most 256 bytes in UTF-8")]
Seconds = Annotated[float, Meta(ge=0, lt=LARGEST_TIME, description="seconds since 1970 UTC")]
TopK = Annotated[int, Meta(ge=1, le=MOST_ANSWERS, description="answers; fewer come if there are fewer candidates")]
Allowed = Annotated[list[Id], Meta(min_length=1, max_length=MOST_ALLOWED, description="only these items are ranked")]
Coverage = Annotated[
    float,
    Meta(
        ge=LOWEST,
        le=HIGHEST,
        description="instead of `top_k` answers those that hold the next item, or action, with this probability; with "
        "`of` item or action, for a model that has limits of such sets",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=MOST_ANSWERS)]
Question = Literal["pair", "item", "action"]

_TEXT = {"type": "string", "maxLength": MOST_ID_BYTES}
_EVENT_SCHEMA = {
    "title": "Event",
    "description": "An event of a history; at least one field.",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {
        "item": {"anyOf": [_TEXT, {"type": "integer"}, {"type": "null"}], "description": "none for a search, a login"},
        "action": {"anyOf": [_TEXT, {"type": "integer"}, {"type": "null"}]},
        "timestamp": {
            "anyOf": [{"type": "number"}, _TEXT, {"type": "null"}],
            "description": "seconds since 1970 UTC, or ISO 8601 text",
        },
    },
    "propertyNames": {"enum": ["item", "action", "timestamp"]},
}
Event = Annotated[
    dict[Literal["item", "action", "timestamp"], Text | int | float | None],
    Meta(min_length=1, extra_json_schema=_EVENT_SCHEMA),
]


class Options(Struct, forbid_unknown_fields=True, kw_only=True):
    """How to rank: the options of the pipeline, with its names and defaults."""

    top_k: TopK = 10
    of: Question = "pair"
    action: Id | None = None
    exclude_seen: bool = False
    allowed_items: Allowed | None = None
    balanced: bool = False
    coverage: Coverage | None = None
    paths: bool = False
    explain: Annotated[
        bool, Meta(description="what each event contributes to each answer; the history and `top_k` are limited more")
    ] = False

    def __post_init__(self) -> None:
        if self.explain and self.top_k > MOST_EXPLAINED:
            raise ValueError(f"Expected `explain` with `top_k` of at most {MOST_EXPLAINED}")

    def as_keywords(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Options.__struct_fields__}


class PredictRequest(Options, forbid_unknown_fields=True, kw_only=True):
    """A history, oldest event first, and how to rank."""

    events: Annotated[list[Event], Meta(max_length=MOST_HISTORY)]


class When(Struct):
    """The time until the next event."""

    median_seconds: float
    within_1_hour: float
    within_1_day: float
    within_7_days: float
    within_30_days: float


class Paths(Struct):
    """The shares of the item's probability that each way of naming it gives."""

    generate: float
    repeat: float
    associate: float


class Repeated(Struct):
    """The latest event with the item, and how probable it is that this one is repeated, given that one is."""

    event: int
    share: float


class Counted(Struct):
    """An event whose item stands near the answer's in other histories; a pair counts more, the nearer it was."""

    event: int
    item: str
    pairs: Annotated[float, Meta(description="of the event's item, then the answer's")]
    reverse_pairs: float
    share: Annotated[float, Meta(description="the part of the memory's score that comes from this event")]


class Similar(Struct):
    """An event whose item has a similar text, with the cosine of the texts."""

    event: int
    item: str
    similarity: float


class Because(Struct):
    """What the parts of the model say of an item. `event` is a place in the history, from 0."""

    repeats: Repeated | None
    counted: list[Counted]
    popularity: Annotated[float, Meta(description="how many times as probable recent popularity makes the item")]
    similar_texts: list[Similar]


Numbers = Annotated[list[float], Meta(description="one for each event of the history, in its order")]


class Answer(Struct):
    action: str | None
    item: str | None
    title: str | None
    probability: float
    when: When | None
    paths: Paths | UnsetType | None = UNSET
    contributions: Numbers | UnsetType = UNSET
    importance: Numbers | UnsetType = UNSET
    because: Because | UnsetType | None = UNSET


class Answers(Struct, kw_only=True):
    """The answers, the most probable first."""

    answers: list[Answer]
    model: str
    cold_start: Annotated[bool, Meta(description="no event of the history is known: what is popular comes first")]
    truncated: Annotated[bool, Meta(description="the history is longer than what the model reads: its end was read")]
    unknown_items: Annotated[int, Meta(description="events whose item the model does not know")]


class EventToStore(Struct, forbid_unknown_fields=True, kw_only=True):
    """One event. Its `event_id` makes sending it again safe."""

    event_id: Id
    user_id: Id
    item: Id | None = None
    action: Id | None = None
    timestamp: Seconds


class EventsRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    events: Annotated[list[EventToStore], Meta(min_length=1, max_length=MOST_EVENTS)]
    learned: Annotated[bool, Meta(description="wait for the memory, and say what it learned")] = False


class Pair(Struct):
    """The memory's weight of `to` after `item` grew by `weight`."""

    item: str
    to: str
    weight: float


class Stored(Struct, kw_only=True):
    event_id: str
    result: Literal["inserted", "duplicate", "conflict", "erased", "expired"]
    inserted: bool
    learned: Annotated[
        list[Pair] | UnsetType | None, Meta(description="null: the event was not counted, because it came late")
    ] = UNSET


class EventsStored(Struct, kw_only=True):
    """What became of each event, in the order of the request."""

    events: list[Stored]
    inserted: int
    duplicates: int


class Erased(Struct):
    erased: Annotated[bool, Meta(description="whether anything was stored of the user")]


class ReloadRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Without a field: the model that the service was started with is looked up anew."""

    model: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    revision: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    rollback: Annotated[bool, Meta(description="serve the model before the last reload again")] = False


class Reloaded(Struct):
    model: str
    previous: str
    changed: bool


class Info(Struct, kw_only=True):
    model: str
    items: int
    actions: list[str]
    max_events: int
    has_time: bool
    store: str | None
    counted_to: Annotated[int, Meta(description="the number of the last journal event that the memory has counted")]
    limits: dict[str, float]


class ItemsQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    query: Annotated[str, Meta(max_length=MOST_ID_BYTES, description="words of a title or of an id, in any case")] = ""
    limit: Limit = 20


class Item(Struct):
    item: str
    title: str | None


class Items(Struct):
    """The item of that id, then those that hold each word, the more common ones first."""

    items: list[Item]


class UsersQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    prefix: Text = ""
    limit: Limit = 20


class Users(Struct):
    """Some users of whom events are stored, in no promised order."""

    users: list[str]


class HistoryEvent(Struct):
    item: str | None
    action: str | None
    timestamp: float
    title: str | None
    known: Annotated[bool, Meta(description="whether the model knows the item")]


class History(Struct):
    """The stored events of a user that the model reads, oldest first."""

    events: list[HistoryEvent]


class Probe(Struct):
    status: str


class ProblemError(Struct):
    loc: str
    msg: str


class Problem(Struct, kw_only=True):
    """RFC 9457, problem details for HTTP APIs."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[ProblemError] | UnsetType = UNSET
    events: Annotated[list[Stored] | UnsetType, Meta(description="of a conflict: what became of each event")] = UNSET


predict_request = msgspec.json.Decoder(PredictRequest)
events_request = msgspec.json.Decoder(EventsRequest)
reload_request = msgspec.json.Decoder(ReloadRequest)
encode = msgspec.json.Encoder().encode


def options_of_query(pairs: list[tuple[str, str]]) -> Options:
    """The options in a query string; `allowed_items` may come several times.

    Raises:
        msgspec.ValidationError: an option that does not exist, or with a value that is none.
    """
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name == "allowed_items":
            values.setdefault(name, []).append(value)
        elif name in values:
            raise msgspec.ValidationError(f"The option comes twice - at `$.{name}`")
        elif name in ("exclude_seen", "balanced", "paths", "explain") and value not in ("true", "false"):
            raise msgspec.ValidationError(f"Expected `true` or `false`, got `{value:.20}` - at `$.{name}`")
        elif name == "top_k" and not (value.isascii() and value.isdigit()):
            raise msgspec.ValidationError(f"Expected a whole number, got `{value:.20}` - at `$.{name}`")
        else:
            values[name] = value
    return msgspec.convert(values, Options, strict=False)


def too_long(values: Mapping[str, Any]) -> str | None:
    """The name of the first text over the limit in bytes, if there is one."""
    for name, value in values.items():
        if type(value) is str and len(value) * 4 > MOST_ID_BYTES and len(value.encode()) > MOST_ID_BYTES:
            return name
    return None


def check_bytes(body: bytes, request: PredictRequest | EventsRequest) -> None:
    """ValidationError if a text has more bytes than an id may have. Most bodies are ASCII: the decoder has checked."""
    if body.isascii() and b"\\u" not in body:
        return
    events: Sequence[Any] = request.events
    for position, event in enumerate(events):
        values = event if isinstance(event, dict) else msgspec.structs.asdict(event)
        if name := too_long(values):
            raise msgspec.ValidationError(
                f"Expected at most {MOST_ID_BYTES} bytes in UTF-8 - at `$.events[{position}].{name}`"
            )
    if isinstance(request, PredictRequest):
        check_options(request)


def check_options(options: Options) -> None:
    for item in (options.action, *(options.allowed_items or ())):
        if item is not None and len(item.encode()) > MOST_ID_BYTES:
            raise msgspec.ValidationError(f"Expected at most {MOST_ID_BYTES} bytes in UTF-8 - at `$.allowed_items`")
