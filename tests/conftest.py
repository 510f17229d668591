"""Shared by all tests: an offline, quiet, one-thread process, and a log small enough to check by hand."""

import os

# Before any import of a Hugging Face library: they read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import clean_processes
import pytest
from hub_server import HubServer
from redis_server import RedisServer

# Of torch and the like: the process that hands out the tests (pytest-xdist) needs none of them.
os.environ["OMP_NUM_THREADS"] = "1"

# Three users, five items, three actions, one event without an item. Times are in seconds since 1970; u1 has two events
# at the same second, u2 returns to the item it saw first, u3 buys a second time.
_TINY_LOG: tuple[tuple[str, str | None, str, int], ...] = (
    ("u1", "a", "view", 1_700_000_000),
    ("u2", "c", "view", 1_700_000_100),
    ("u1", "b", "view", 1_700_000_060),
    ("u1", "b", "cart", 1_700_000_060),
    ("u3", "d", "view", 1_700_003_600),
    ("u2", None, "view", 1_700_003_700),
    ("u1", "b", "buy", 1_700_007_200),
    ("u3", "d", "buy", 1_700_010_000),
    ("u2", "e", "view", 1_700_086_400),
    ("u2", "c", "cart", 1_700_090_000),
    ("u3", "a", "buy", 1_700_172_800),
    ("u1", "a", "view", 1_700_259_200),
)


def pytest_configure(config: pytest.Config) -> None:
    """One server of clean processes for all workers, which inherit the environment. Linux forks safely after torch."""
    if sys.platform == "linux" and not hasattr(config, "workerinput"):
        stack = ExitStack()
        stack.enter_context(clean_processes.serving())
        config.add_cleanup(stack.close)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector, which every training calls, need not go through it."""
    gc.freeze()


@pytest.fixture
def tiny_log_rows() -> dict[str, list[str | int | None]]:
    """The twelve events as columns (`pl.DataFrame(rows)`): user_id, item_id (None once), action, timestamp (s)."""
    user_ids, item_ids, actions, timestamps = zip(*_TINY_LOG, strict=True)
    return {
        "user_id": list(user_ids),
        "item_id": list(item_ids),
        "action": list(actions),
        "timestamp": list(timestamps),
    }


@pytest.fixture
def tiny_log_csv(tmp_path: Path) -> Path:
    """The twelve events as a CSV file with a header; the event without an item has an empty field."""
    lines = [f"{user},{item or ''},{action},{time}" for user, item, action, time in _TINY_LOG]
    path = tmp_path / "tiny_log.csv"
    path.write_text("\n".join(["user_id,item_id,action,timestamp", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny BERT (`tiny.save_bert`), which no test changes."""
    from tiny import save_bert

    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the golden model (item text, three actions, times) with its bundle, which no test changes. It is
    exported once for all processes of a test run."""
    import tarfile

    from filelock import FileLock
    from golden import ARCHIVE

    from next_behavior.serving.export import bundle_for

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(folder, filter="data")
        bundle_for(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """An empty Hub on loopback, in its own process, for one test module; tests/hub_server.py says how to use it."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server for one test module; skipped without `redis-server`, unless REDIS_REQUIRED is set."""
    with RedisServer() as server:
        yield server
