"""What both event stores do: what is acknowledged stays, once and in order; what is erased is gone."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_events import event

from next_behavior.serving.event_store import EventStore, Outcome, StoreBusy, StoredEvent, StoreFull, StoreUnavailable
from next_behavior.serving.group_commit import GroupCommit
from next_behavior.serving.redis_store import RedisStore
from next_behavior.serving.sqlite_store import SQLiteStore

STORES = ["sqlite", pytest.param("redis", marks=pytest.mark.redis)]
numbers = itertools.count()


def shown(history: list[dict[str, Any]]) -> list[tuple[str | None, str | None, float]]:
    return [(row["item"], row["action"], row["timestamp"]) for row in history]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., EventStore]:
    """Makes a new store of the kind that the test is for; called with the same name, it opens that one again."""
    return maker(request.param, request, tmp_path)


def maker(kind: str, request: pytest.FixtureRequest, folder: Path) -> Callable[..., EventStore]:
    if kind == "sqlite":
        return lambda name="events", **options: SQLiteStore(folder / f"{name}.sqlite", **options)
    address = request.getfixturevalue("redis_server").address
    test = next(numbers)
    return lambda name="events", **options: RedisStore(address, prefix=f"{test}:{name}:", **options)


on_both = pytest.mark.parametrize("make", STORES, indirect=True)


# -- both stores -------------------------------------------------------------------------------------------------------


@on_both
def test_an_event_is_there_when_the_store_is_opened_again(make: Callable[..., EventStore]) -> None:
    store = make()
    assert store.append([event("e1", time=2.5), event("e2", item=None, action=None, time=1.25)]) == ["inserted"] * 2
    store.close()
    store.close()
    with closing(make()) as store:
        history = [
            {"item": None, "action": None, "timestamp": 1.25},
            {"item": "84", "action": "view", "timestamp": 2.5},
        ]
        assert store.history("ann", 50) == history
        assert store.history("ann", 1) == history[1:]
        assert store.history("ann", 0) == store.history("bob", 50) == []
        assert store.append([event("e1", time=2.5), event("e1", time=3.0)]) == ["duplicate", "conflict"]
        assert store.count() == 2
        assert store.size() > 0


@on_both
def test_a_history_is_read_as_it_was_when_an_event_came(make: Callable[..., EventStore]) -> None:
    with closing(make()) as store:
        store.append([event(f"e{n}", item=f"i{n}", time=time) for n, time in enumerate([10.0, 30.0, 20.0, 40.0])])
        store.append([event(f"f{n}", item="later", time=50.0 + n) for n in range(40)])
        arrivals = [one.arrival for one in store.journal(limit=4)]
        histories = [store.history("ann", 2, until=arrival) for arrival in arrivals]
        items = [[one["item"] for one in history] for history in histories]
        assert items == [["i0"], ["i0", "i1"], ["i2", "i1"], ["i1", "i3"]]
        assert store.history("ann", 0, until=arrivals[0]) == []


@on_both
@pytest.mark.parametrize("text", ["a b", "a\0b", "\u202eright", "zero\u200bwidth", "café", "cafe\u0301", '"]\n', "007"])
def test_any_text_comes_back_as_it_was(make: Callable[..., EventStore], text: str) -> None:
    with closing(make()) as store:
        store.append([event(text, text, text, text, 1_700_000_000.123456)])
        assert shown(store.history(text, 1)) == [(text, text, 1_700_000_000.123456)]
        assert [(e.user, e.item, e.action, e.time) for e in store.journal()] == [
            (text, text, text, 1_700_000_000.123456)
        ]
        assert store.users() == store.users(1, text[:2]) == [text]


@pytest.mark.parametrize(
    "wrong",
    [
        event(""),
        event("e", user=""),
        event("e", item=""),
        event("e", user="\ud800"),
        event("e", time=float("nan")),
        event("e", time=-1.0),
        event("e", time=1_700_000_000_000.0),
        event("e", time=True),
        StoredEvent("e", 7, None, None, 1.0),  # type: ignore[arg-type]
    ],
)
def test_what_a_store_cannot_give_back_is_refused_and_the_rest_with_it(tmp_path: Path, wrong: StoredEvent) -> None:
    with closing(SQLiteStore(tmp_path / "events.sqlite")) as store:
        with pytest.raises(ValueError, match=r"event 1: got .*; expected"):
            store.append([event("first"), wrong])
        assert store.count() == 0


@on_both
def test_an_erased_user_is_not_named_and_old_events_stay_away(make: Callable[..., EventStore]) -> None:
    with closing(make(clock=lambda: 100.0)) as store:
        store.append([event("e1", time=50.0), event("e2", time=120.0), event("e3", "bob")])
        assert store.erase("ann") is True
        assert store.erase("nobody") is False
        assert store.erasures() == 2
        assert store.history("ann", 9) == []
        assert [e.user for e in store.journal()] == store.users() == ["bob"]
        # The second event was ahead of the clock.
        again = [event("e1", time=50.0), event("e2", time=120.0), event("e4", time=121.0)]
        assert store.append(again) == ["erased", "erased", "inserted"]
        assert store.erased_until(["ann", "bob", "nobody"]) == {"ann": 120.0, "nobody": 100.0}
        assert store.erased_until([]) == {}


@on_both
def test_the_journal_is_read_in_pages_from_where_it_was_left(make: Callable[..., EventStore]) -> None:
    with closing(make()) as store:
        store.append([event(f"e{n}", time=float(9 - n), item=str(n)) for n in range(9)])
        first = store.journal(limit=4)
        assert [e.item for e in first] == ["0", "1", "2", "3"]
        rest = store.journal(after=first[-1].arrival)
        assert [e.item for e in rest] == ["4", "5", "6", "7", "8"]
        assert store.journal(after=rest[-1].arrival) == []
        arrivals = [e.arrival for e in first + rest]
        assert arrivals == sorted(set(arrivals))
        store.erase("ann")
        store.append([event("late", "bob")])
        assert store.journal()[0].arrival > arrivals[-1]


@on_both
def test_arrivals_grow_when_the_clock_goes_back(make: Callable[..., EventStore]) -> None:
    clock = iter(range(10_000, 0, -1))
    with closing(make(clock=lambda: float(next(clock)))) as store:
        for name in ("e1", "e2", "e3"):
            store.append([event(name, item=name)])
        assert [row["item"] for row in store.history("ann", 9)] == ["e1", "e2", "e3"]
        assert [e.item for e in store.journal()] == ["e1", "e2", "e3"]


@on_both
def test_an_event_sent_by_many_at_once_is_inserted_once(make: Callable[..., EventStore]) -> None:
    with closing(make()) as store:
        outcomes: list[Outcome] = []
        threads = [
            threading.Thread(target=lambda: outcomes.extend(store.append([event(f"e{n}") for n in range(20)])))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["duplicate"] * 140 + ["inserted"] * 20
        assert len(store.history("ann", 50)) == store.count() == 20


@on_both
def test_the_bounds_keep_the_newest_events(make: Callable[..., EventStore]) -> None:
    now = 1e6
    with closing(make(max_events_per_user=3, max_age=5000.0, clock=lambda: now)) as store:
        times = [now - 4000.0, now, now - 1000.0, now - 6000.0, now - 3000.0, now - 4500.0]
        outcomes = store.append([event(f"e{n}", time=time) for n, time in enumerate(times)])
        assert outcomes == ["inserted", "inserted", "inserted", "expired", "inserted", "expired"]
        assert [moment for _, _, moment in shown(store.history("ann", 9))] == [now - 3000.0, now - 1000.0, now]
        assert store.append([event("e0", time=now - 4000.0)]) == ["expired"]
        now += 4500.0
        assert [moment for _, _, moment in shown(store.history("ann", 9))] == [now - 4500.0]


@dataclass
class Model:
    """What a store does, in the plainest way."""

    most: int | None
    age: float | None
    now: float = 1e6
    events: dict[str, StoredEvent] = field(default_factory=dict)
    erased: dict[str, float] = field(default_factory=dict)
    horizon: dict[str, float] = field(default_factory=dict)

    def of(self, user: str) -> list[StoredEvent]:
        cutoff = self.now - self.age if self.age is not None else 0.0
        return sorted((e for e in self.events.values() if e.user == user and e.time >= cutoff), key=lambda e: e.time)

    def append(self, e: StoredEvent) -> Outcome:
        if e.time <= self.erased.get(e.user, -1.0):
            return "erased"
        if (self.age is not None and e.time < self.now - self.age) or e.time <= self.horizon.get(e.user, -1.0):
            return "expired"
        if e.event_id in self.events:
            return "duplicate" if self.events[e.event_id] == e else "conflict"
        self.events[e.event_id] = e
        if self.most is not None and len(kept := self.of(e.user)) > self.most:
            del self.events[kept[0].event_id]
            self.horizon[e.user] = kept[0].time
        return "inserted"

    def erase(self, user: str) -> None:
        self.erased[user] = max([self.now, self.erased.get(user, 0.0), *(e.time for e in self.of(user))])
        self.events = {name: e for name, e in self.events.items() if e.user != user}
        self.horizon.pop(user, None)


users = st.sampled_from(["ann", "bob"])
moments = st.integers(-6, 2).map(lambda hours: 1e6 + 1000.0 * hours)
sent = st.builds(event, st.sampled_from("abcdefgh"), users, st.sampled_from(["1", "2", None]), st.just("view"), moments)
steps = st.lists(st.one_of(st.lists(sent, max_size=6), users, st.sampled_from([1000.0, 3000.0])), max_size=10)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize(("most", "age"), [(None, None), (2, None), (2, 4500.0)])
def test_any_order_of_calls_leaves_what_the_plainest_store_has(
    request: pytest.FixtureRequest, kind: str, most: int | None, age: float | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make = maker(kind, request, Path(folder))

        @settings(max_examples=25, deadline=None, derandomize=True, database=None)
        @given(steps)
        def holds(calls: list[list[StoredEvent] | str | float]) -> None:
            model, name = Model(most, age), str(next(numbers))
            options = {"max_events_per_user": most, "max_age": age, "clock": lambda: model.now}
            store = make(name, **options)
            for call in calls:
                if isinstance(call, float):
                    model.now += call
                    store.close()
                    store = make(name, **options)
                elif isinstance(call, str):
                    store.erase(call)
                    model.erase(call)
                else:
                    if age is not None:  # when an old id is forgotten is not said
                        call = [event(f"{e.user} {e.item} {e.time}", e.user, e.item, e.action, e.time) for e in call]
                    assert store.append(call) == [model.append(e) for e in call]
            for user in ("ann", "bob"):
                expected = [(e.item, e.action, e.time) for e in model.of(user)]
                assert shown(store.history(user, 50)) == expected
                assert shown(store.history(user, 1)) == expected[-1:]
            if most is None:
                journal = [(e.user, e.item, e.action, e.time) for e in store.journal()]
                assert journal == [(e.user, e.item, e.action, e.time) for e in model.events.values()]
                assert sorted(store.users()) == sorted({e.user for e in model.events.values()})
                assert store.count() == len(journal)
            assert store.erased_until(["ann", "bob"]) == model.erased
            store.close()

        holds()


# -- one thread that writes -----------------------------------------------------------------------------------------


def test_calls_that_wait_share_a_commit() -> None:
    sizes: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def commit(requests: list[Any]) -> list[Any]:
        sizes.append(len(requests))
        begun.set()
        assert go.wait(10)
        return ["done"] * len(requests)

    queue = GroupCommit(commit, max_waiting=50)
    first = queue.submit([event("first")])
    assert begun.wait(10)
    rest = [queue.submit([event(str(n))]) for n in range(50)]
    with pytest.raises(StoreBusy, match="wait to be written"):
        queue.submit([event("one too many")])
    assert rest[0].cancel()
    go.set()
    assert [future.result(10) for future in [first, *rest[1:]]] == ["done"] * 50
    assert sizes == [1, 49]
    queue.close()
    with pytest.raises(StoreUnavailable, match="after close"):
        queue.submit([event("late")])


def test_an_error_is_raised_for_those_that_wait_and_the_thread_goes_on() -> None:
    answers: list[Any] = [StoreFull("full"), ZeroDivisionError("a fault"), None]

    def commit(requests: list[Any]) -> list[Any]:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return ["done"] * len(requests)

    with closing(GroupCommit(commit)) as queue:
        for expected in (StoreFull, ZeroDivisionError):
            with pytest.raises(expected):
                queue.wait(queue.submit([event("e")]))
        assert queue.wait(queue.submit([event("e")])) == "done"
