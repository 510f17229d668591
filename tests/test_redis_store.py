"""The event store on a real Redis server: several processes, a server that fails, is emptied, or is full."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import redis
from redis_server import RedisServer
from stored_events import WRITER, event

from next_behavior.serving.event_store import StoreFull, StoreReadOnly, StoreUnavailable
from next_behavior.serving.open_store import open_store
from next_behavior.serving.redis_store import RedisStore

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.redis
def test_two_processes_share_a_redis_store(redis_server: RedisServer) -> None:
    with (
        closing(open_store(redis_server.address)) as one,
        closing(open_store(redis_server.address, read_only=True)) as two,
    ):
        one.append([event("shared", "shared user")])
        assert len(two.history("shared user", 9)) == 1
        with pytest.raises(StoreReadOnly):
            two.append([event("e2")])
        assert "appendfsync always" in one.description


@pytest.mark.redis
def test_redis_gone_and_back(redis_server: RedisServer) -> None:
    with closing(RedisStore(redis_server.address, prefix="gone:")) as store:
        store.append([event("e1")])
        redis_server.kill()
        for call in (lambda: store.append([event("e2")]), lambda: store.history("ann", 9)):
            with pytest.raises(StoreUnavailable, match="start it"):
                call()
        redis_server.start()
        assert store.append([event("e1"), event("e2")]) == ["duplicate", "inserted"]
        assert len(store.history("ann", 9)) == 2


@pytest.mark.redis
def test_a_redis_that_was_emptied_is_a_new_store(redis_server: RedisServer) -> None:
    with (
        closing(RedisStore(redis_server.address, prefix="empty:")) as store,
        redis.Redis.from_url(redis_server.address) as client,
    ):
        store.append([event("e1")])
        last = store.journal()[-1].arrival
        client.flushall()
        assert store.history("ann", 9) == []
        assert store.append([event("e1")]) == ["inserted"]
        assert store.journal()[0].arrival > last
        with closing(RedisStore(redis_server.address, prefix="empty:")) as other:
            assert len(other.history("ann", 9)) == 1


@pytest.mark.redis
def test_a_full_redis_refuses_events_until_there_is_space(redis_server: RedisServer) -> None:
    with (
        closing(RedisStore(redis_server.address, prefix="full:")) as store,
        redis.Redis.from_url(redis_server.address) as client,
    ):
        store.append([event("e1")])
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreFull, match="maxmemory"):
                store.append([event("e2")])
            assert len(store.history("ann", 9)) == 1
        finally:
            client.config_set("maxmemory", 0)
        assert store.append([event("e2")]) == ["inserted"]


@pytest.mark.redis
def test_no_key_and_no_value_in_redis_names_an_erased_user(redis_server: RedisServer) -> None:
    with (
        closing(RedisStore(redis_server.address, prefix="erase:")) as store,
        redis.Redis.from_url(redis_server.address) as client,
    ):
        store.append([event(f"{name}-{n}", name) for n in range(9) for name in ("someone|", "another|")])
        store.erase("someone|")
        found = set()
        for key in client.scan_iter("erase:*"):
            content = key + (client.dump(key) or b"")
            found |= {name for name in (b"someone|", b"another|") if name in content}
        assert found == {b"another|"}


@pytest.mark.redis
def test_redis_forgets_users_whose_events_are_too_old(redis_server: RedisServer) -> None:
    with closing(RedisStore(redis_server.address, prefix="old:", max_age=0.5)) as store:
        store.append([event("e1", time=time.time())])
        assert store.users() == ["ann"]
        for _ in range(200):
            if not store.users():
                break
            time.sleep(0.05)
        assert store.users() == store.journal() == store.history("ann", 9) == []


def test_an_address_that_is_no_store_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a path, or redis://"):
        open_store("postgres://user:secret@host/database")
    with pytest.raises(StoreUnavailable, match=r"got no answer from redis://127\.0\.0\.1:1/0 "):
        open_store("redis://user:secret@127.0.0.1:1/0")


@pytest.mark.redis
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_every_acknowledged_event_outlives_a_kill_of_redis_once(redis_server: RedisServer, rounds: int) -> None:
    acknowledged: list[str] = []
    sent = itertools.count()
    with closing(RedisStore(redis_server.address, prefix=f"kill{rounds}:")) as store:
        for number in range(rounds):
            killer = threading.Timer(0.02 * (1 + number % 5), redis_server.kill)
            killer.start()
            with contextlib.suppress(StoreUnavailable):
                while True:
                    name = str(next(sent))
                    store.append([event(name, item=name)])
                    acknowledged.append(name)
            killer.join()
            redis_server.start()
            items = [stored.item for stored in store.journal(limit=10**9)]
            assert len(items) == len(set(items))
            assert set(acknowledged) <= set(items)
            assert sorted(row["item"] for row in store.history("ann", 10**9)) == sorted(map(str, items))


@pytest.mark.redis
def test_two_processes_that_write_are_killed_and_lose_nothing(redis_server: RedisServer) -> None:
    command = [sys.executable, "-c", WRITER, redis_server.address]
    processes = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for number in range(2)
    ]
    acknowledged: list[str] = []
    for process in processes:
        assert process.stdout is not None
        acknowledged.append(process.stdout.readline().strip())
    for process in processes:
        process.kill()
        acknowledged += process.communicate()[0].split()
    with closing(open_store(redis_server.address, read_only=True)) as store:
        items = [stored.item for stored in store.journal(limit=10**9)]
        assert len(items) == len(set(items))
        assert {"0", "1"} <= {name.split("-")[0] for name in acknowledged}
        assert set(acknowledged) <= set(items)
        for user in range(5):
            moments = [row["timestamp"] for row in store.history(f"user {user}", 10**9)]
            assert moments == sorted(moments)
