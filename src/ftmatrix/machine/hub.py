"""The Hugging Face hub: one call that downloads a snapshot, and every way it fails in one line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftmatrix.errors import DataError, FtmatrixError, GatedError, ModelError, NotFetchedError, first_line

UNAUTHORISED = 401


@dataclass(frozen=True)
class Repository:
    """What to fetch: `revision` is a branch, tag or commit."""

    id: str
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"
    gated: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this machine, and the commit that the revision resolved to."""

    folder: Path
    commit: str


def download(repository: Repository, named: str, patterns: Sequence[str], *, fetch: bool = True) -> Snapshot:
    """Fetch the files of a repository that match, or find them in the cache; `fetch=False` looks there only.

    `named` is what the user typed (`model=gemma3-270m`); it starts every error message.

    Raises:
        ModelError or DataError: the hub can't be reached, or has no such repository or revision.
        NotFetchedError: it isn't in the cache, and `fetch` is False.
        GatedError: a licence has to be accepted first.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    fail: type[FtmatrixError] = ModelError if repository.kind == "model" else DataError
    page = f"{repository.kind} {repository.id} at revision {repository.revision}"
    local = "model=local model.path=DIR" if repository.kind == "model" else "data.path=DIR"
    try:
        folder = snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=repository.revision,
            allow_patterns=list(patterns),
            local_files_only=not fetch,
        )
    except GatedRepoError as error:
        raise GatedError(
            f"{named}: {repository.id} is gated; accept its licence on its hub page with your account and log in "
            f"(`hf auth login` or HF_TOKEN), or take a local copy with {local}"
        ) from error
    except RepositoryNotFoundError as error:
        raise fail(
            f"{named}: the hub has no {repository.kind} {repository.id}, or hides it from you; or take {local}"
        ) from error
    except RevisionNotFoundError as error:
        raise fail(f"{named}: {repository.id} has no revision {repository.revision!r}; or take {local}") from error
    except LocalEntryNotFoundError as error:
        if not fetch:
            licence = ", once its licence is accepted on the hub" if repository.gated else ""
            raise NotFetchedError(f"{named}: {page} isn't in the cache; a sweep fetches it first{licence}") from error
        licence = " (its licence must be accepted there)" if repository.gated else ""
        raise fail(
            f"{named}: {page} is neither in the cache nor reachable on the hub; connect this machine to the hub"
            f"{licence}, or take a local copy with {local}"
        ) from error
    except Exception as error:  # a boundary: the HTTP client's own errors share no base with the hub's
        if getattr(getattr(error, "response", None), "status_code", None) == UNAUTHORISED:
            why = f"the hub refuses your credentials for {repository.id}; log in again (`hf auth login` or HF_TOKEN)"
        else:
            why = f"{page} could not be fetched ({first_line(error)}); try again"
        raise fail(f"{named}: {why}, or take a local copy with {local}") from error
    return Snapshot(Path(folder), Path(folder).name)


def cached_config(repository: Repository) -> Path | None:
    """The folder of a model's config.json in the hub's cache, whatever else of the model is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository.id, "config.json", revision=repository.revision)
    return Path(found).parent if isinstance(found, str) else None
