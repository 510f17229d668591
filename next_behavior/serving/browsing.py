"""What may be looked up, beside what may be asked: items by their titles, users, and a user's stored events.

The page at / needs it, and whoever debugs an integration. The rules are those of every route: the token, the problem
documents, and nothing of a request in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from next_behavior.serving import messages, problems
from next_behavior.serving.answering import Answering
from next_behavior.serving.item_search import ItemSearch
from next_behavior.serving.routes import Routes, json_response, query_of, user_of
from next_behavior.serving.service import Service

Query = TypeVar("Query", messages.ItemsQuery, messages.UsersQuery)


class Browsing(Routes):
    """All endpoints of one service."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._search: tuple[str, ItemSearch] | None = None

    async def items(self, request: Request) -> Response:
        asked = read_query(request, messages.ItemsQuery)
        predictor: Answering = self._serving().predictor
        lines = await self.service.in_thread(self._lines, predictor, asked)
        return json_response(messages.Items([item_of(predictor, line) for line in lines]))

    def _lines(self, predictor: Answering, asked: messages.ItemsQuery) -> list[int]:
        """The index is made at the first search, and again after a reload."""
        kept = self._search
        if kept is None or kept[0] != predictor.info.revision:
            kept = self._search = (predictor.info.revision, ItemSearch(predictor.vocabulary))
        exact = predictor.vocabulary_line(asked.query)
        lines = [] if exact is None else [exact]
        return list(dict.fromkeys([*lines, *kept[1].lines(asked.query, asked.limit)]))[: asked.limit]

    async def users(self, request: Request) -> Response:
        asked = read_query(request, messages.UsersQuery)
        return json_response(messages.Users(await self._stored(lambda store: store.users(asked.limit, asked.prefix))))

    async def events_of_user(self, request: Request) -> Response:
        user = user_of(request)
        predictor: Answering = self._serving().predictor
        history = await self._stored(lambda store: store.history(user, predictor.info.max_events))
        return json_response(messages.History(with_titles(predictor, history)))


def with_titles(predictor: Answering, history: Sequence[dict[str, Any]]) -> list[messages.HistoryEvent]:
    events = []
    for event in history:
        line = None if event["item"] is None else predictor.vocabulary_line(event["item"])
        title = None if line is None else item_of(predictor, line).title
        events.append(messages.HistoryEvent(**event, title=title, known=line is not None))
    return events


def item_of(predictor: Answering, line: int) -> messages.Item:
    _, item, _, title = predictor.vocabulary.fields(line)
    return messages.Item(item, title or None)


def read_query(request: Request, kind: type[Query]) -> Query:
    """The query string as a struct.

    Raises:
        Problem: 400, 422.
    """
    values: dict[str, str] = {}
    try:
        for name, value in query_of(request):
            if name in values:
                raise msgspec.ValidationError(f"The option comes twice - at `$.{name}`")
            if name == "limit" and not (value.isascii() and value.isdigit()):
                raise msgspec.ValidationError(f"Expected a whole number, got `{value:.20}` - at `$.{name}`")
            values[name] = value
        asked = msgspec.convert(values, kind, strict=False)
        if long := messages.too_long(msgspec.structs.asdict(asked)):
            raise msgspec.ValidationError(f"Expected at most {messages.MOST_ID_BYTES} bytes in UTF-8 - at `$.{long}`")
    except msgspec.ValidationError as error:
        raise problems.of_decoding(error) from error
    return asked
