"""The Hub on loopback that other tests publish to does what its docstring says."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from subprocess import CompletedProcess

from hub_server import HubServer
from processes import run_python

# Pushes a file of each kind, lists, tags, reads back, and says which errors a stranger and a wrong token get.
CHILD = """
import io, os
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

api = HfApi()
assert api.whoami()["name"] == "ana"
api.create_repo("ana/box", private=True)
api.create_repo("ana/box", private=True, exist_ok=True)
for path, content in (("a/note.txt", b"text"), ("weights.safetensors", bytes(range(256)) * 64)):
    api.upload_file(path_in_repo=path, path_or_fileobj=io.BytesIO(content), repo_id="ana/box")
api.create_tag("ana/box", tag="v1")
api.delete_file("a/note.txt", "ana/box")
assert [entry.path for entry in api.list_repo_tree("ana/box", recursive=True)] == ["weights.safetensors"]
assert open(hf_hub_download("ana/box", "a/note.txt", revision="v1"), "rb").read() == b"text"
assert open(hf_hub_download("ana/box", "weights.safetensors"), "rb").read() == bytes(range(256)) * 64
for token, error in ((False, RepositoryNotFoundError), ("hf_wrong", HfHubHTTPError)):
    try:
        HfApi(token=token).model_info("ana/box")
    except error as refused:
        print(refused.response.status_code)
"""


def run(hub: HubServer, home: Path, code: str, status: int = 0) -> CompletedProcess[str]:
    return run_python(home, "-I", "-c", code, environment=hub.environment(home), status=status)


def test_a_client_pushes_lists_tags_deletes_and_reads_back(hub: HubServer, tmp_path: Path) -> None:
    assert run(hub, tmp_path, CHILD).stdout.split() == ["401", "401"]
    weights = hashlib.sha256(bytes(range(256)) * 64).hexdigest()
    assert hub.files("ana/box") == {"weights.safetensors": weights}
    assert set(hub.files("ana/box", revision="v1")) == {"weights.safetensors", "a/note.txt"}
    assert hub.repositories()["models/ana/box"] == {"private": True, "commits": 4, "branches": ["main"], "tags": ["v1"]}
    assert any(line.startswith("PUT /lfs/") for line in hub.requests())
    assert hub.requests() == []


def test_faults_come_as_often_as_asked_and_end_with_the_block(hub: HubServer, tmp_path: Path) -> None:
    code = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
    with hub.fault("GET", "/api/whoami-v2", "500", times=1):
        assert "injected 500" in run(hub, tmp_path, code, status=1).stderr
        assert run(hub, tmp_path, code).stdout == "ana\n"
    assert hub.requests() == ["GET /api/whoami-v2 500", "GET /api/whoami-v2 200"]
    with hub.fault("GET", "/api/whoami-v2", "drop"):
        assert "RemoteProtocolError" in run(hub, tmp_path, code, status=1).stderr
    assert run(hub, tmp_path, code).stdout == "ana\n"


def test_the_environment_of_a_child_holds_no_setting_of_its_parent(hub: HubServer, tmp_path: Path) -> None:
    assert hub.environment(tmp_path)["HF_ENDPOINT"] == hub.endpoint
    inherited = {name for name in hub.environment(tmp_path) if name in os.environ and name.startswith("HF_")}
    assert all(
        hub.environment(tmp_path)[name] != os.environ[name] for name in inherited & {"HF_HOME", "HF_HUB_OFFLINE"}
    )
    assert "HF_TOKEN" not in hub.environment(tmp_path, token=None)
