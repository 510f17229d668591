"""Sending a folder to a Hub repository: only what changed, in one commit, or nothing at all.

    sent = send(api, folder, "ana/shop", private=True)      # Sent(commit, changed files), or SendError

The remote's listing is compared with the folder by content (git's blob id, or SHA-256 for large files), so an unchanged
folder sends nothing. Large files are sent first, one at a time. The commit that shows them comes last: a failure before
it leaves the repository as it was, and large files that have arrived are not sent again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

# Written by the Hub itself.
NOT_OURS = {".gitattributes"}


class SendError(ValueError):
    """Nothing, or not everything, was sent. The message: what happened, how the repository is now, what to do."""


@dataclass(frozen=True)
class Sent:
    """What a call of `send` did.

    Attributes:
        commit: the branch's commit afterwards.
        changed: paths that were sent; empty if the remote had them all.
        others: paths on the remote that do not belong to the folder; they are left alone.
        private: whether the repository is private.
    """

    commit: str
    changed: list[str]
    others: list[str]
    private: bool


def is_hub_id(name: str) -> bool:
    """Whether a name is OWNER/NAME and no file or folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def token_or_error() -> str:
    """The token of the environment (HF_TOKEN) or of `hf auth login`.

    Raises:
        SendError: there is none.
    """
    token = get_token()
    if token is None:
        raise SendError("got no Hub token; expected one with write access: run `hf auth login`, or set HF_TOKEN.")
    return token


def content_ids(path: Path) -> tuple[str, str]:
    """Git's blob id and the SHA-256 of a file, as the Hub lists small and large files."""
    blob, sha = hashlib.sha1(f"blob {path.stat().st_size}\0".encode()), hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            blob.update(part)
            sha.update(part)
    return blob.hexdigest(), sha.hexdigest()


def folder_files(folder: Path) -> dict[str, Path]:
    """{path in the repository: file} of all files below a folder, sorted."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def remote_files(api: HfApi, repo_id: str, repo_type: str, revision: str) -> dict[str, str]:
    """{path: SHA-256 of a large file, git's blob id of a small one} of a revision."""
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    files = (entry for entry in entries if isinstance(entry, RepoFile))
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def differing(folder: Path, remote: dict[str, str]) -> list[str]:
    """Paths of the folder's files that the remote lacks or has with another content."""
    return [name for name, path in folder_files(folder).items() if remote.get(name) not in content_ids(path)]


def send(
    api: HfApi,
    folder: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = True,
    revision: str = "main",
    tag: str | None = None,
    message: str,
) -> Sent:
    """Makes the repository hold the folder's files.

    Args:
        private: whether a new repository is private. An existing public one is only written to if this is False.
        revision: the branch; it is made from main if it does not exist.
        tag: a name for the commit; one that exists for another commit is an error.

    Raises:
        SendError: it could not be done; the message says how the repository is now.
    """
    before = None
    try:
        with clear_errors(api, repo_id, repo_type):
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
            info = api.repo_info(repo_id, repo_type=repo_type)
            if private and not info.private:
                raise SendError(
                    f"{repo_id} exists and is public; expected a private repository: pass --public to publish to it, "
                    "or make it private in its settings first. Nothing was sent."
                )
            before = branch_commit(api, repo_id, repo_type, revision)
            remote = remote_files(api, repo_id, repo_type, revision)
            changed = differing(folder, remote)
            commit = before
            if changed:
                files = folder_files(folder)
                operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name]) for name in changed]
                commit = api.create_commit(
                    repo_id,
                    operations,
                    commit_message=message,
                    repo_type=repo_type,
                    revision=revision,
                    parent_commit=before,
                    num_threads=1,
                ).oid
    except SendError as error:
        if before is None:
            raise SendError(f"{error}\nNothing was sent.") from error
        # The commit may have been made although its answer was lost on the way back.
        commit = state_after_failure(api, folder, repo_id, repo_type, revision, before, error)
    if tag is not None:
        with clear_errors(api, repo_id, repo_type):
            set_tag(api, repo_id, repo_type, tag, commit)
    others = sorted(set(remote) - set(folder_files(folder)) - NOT_OURS)
    return Sent(commit, changed, others, bool(info.private))


def branch_commit(api: HfApi, repo_id: str, repo_type: str, revision: str) -> str:
    """The commit of a branch, which is made from main if it does not exist."""
    try:
        return str(api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision, repo_type=repo_type)
        return str(api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha)


def set_tag(api: HfApi, repo_id: str, repo_type: str, tag: str, commit: str) -> None:
    """Names a commit.

    Raises:
        SendError: the tag names another commit.
    """
    tags = {entry.name: entry.target_commit for entry in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
    if tag not in tags:
        api.create_tag(repo_id, tag=tag, revision=commit, repo_type=repo_type)
    elif tags[tag] != commit:
        raise SendError(
            f"the tag {tag} of {repo_id} names commit {tags[tag][:8]}; expected {commit[:8]} or no such tag: choose "
            "another --tag. The files were sent."
        )


def state_after_failure(
    api: HfApi, folder: Path, repo_id: str, repo_type: str, revision: str, before: str, error: SendError
) -> str:
    """The commit that holds the folder although sending it ended in `error`.

    Raises:
        SendError: there is none; with how the repository is now.
    """
    resume = "Run the same command again: large files that have arrived are not sent a second time."
    try:
        with clear_errors(api, repo_id, repo_type):
            now = str(api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha)
            arrived = not differing(folder, remote_files(api, repo_id, repo_type, revision))
    except SendError:
        raise SendError(
            f"{error}\nThe state of {repo_id} is not known; a commit is made whole or not at all. {resume}"
        ) from error
    if arrived:
        return now
    state = "is as it was" if now == before else "was changed by someone else in the meantime"
    raise SendError(f"{error}\n{repo_id} {state} (commit {now[:8]} on {revision}). {resume}") from error


@contextmanager
def clear_errors(api: HfApi, repo_id: str, repo_type: str) -> Iterator[None]:
    """Turns an error of huggingface_hub into a SendError that says what to do. It never shows the token."""
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled, EntryNotFoundError) as error:
        raise SendError(explained(error, repo_id, api)) from error
    except RuntimeError as error:  # huggingface_hub's wrapper around a large file's upload
        cause = error.__cause__
        if not isinstance(cause, (HfHubHTTPError, httpx2.HTTPError)):
            raise
        raise SendError(f"{error} {explained(cause, repo_id, api)}") from error


def explained(error: Exception, repo_id: str, api: HfApi) -> str:
    """What an error of the Hub's client means for the user, and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    reason = reason.replace(str(api.token), "[token]") if api.token else reason
    remedies = {
        401: "the token is wrong, or has expired: run `hf auth login`, or set HF_TOKEN to a valid one",
        403: f"the token may not write to {repo_id}: use one with write access to that namespace",
        404: f"{repo_id} or something in it was not found: check --repo_id, --revision and the token's rights",
        409: "somebody else made the same change: run the command again",
        412: "the repository was changed while this ran: run the command again",
        429: "the Hub asks for fewer requests: wait some minutes",
    }
    if status is None:
        what = f"the connection to {api.endpoint} failed ({type(error).__name__}: {reason}): check the network"
    elif status >= 500:
        what = f"the Hub answered {status} ({reason}), a fault on its side: try again later"
    else:
        what = f"the Hub answered {status} ({reason}): {remedies.get(status, 'it did not accept the request')}"
    return f"{what}."
