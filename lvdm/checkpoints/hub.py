"""Model folders on the Hugging Face Hub: what is loaded from there, and put there. Only safetensors, YAML and JSON."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lvdm.bases.loading import INDEX, download_base
from lvdm.errors import CheckpointError, UserError
from lvdm.outside import HUB_ID

FILES = ["*.safetensors", "*.safetensors.index.json", "*.yaml", "SHA256SUMS", "README.md"]


def download(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder on this disk of the model OWNER/NAME, ours or a pipeline of diffusers, fetched into the Hub's cache
    where it is not there yet.

    revision: a branch, tag or commit (None: main). token: as huggingface_hub takes it. local_files_only: no network.
    Raises CheckpointError for a model that is not there or not public, and where the Hub cannot be reached.
    """
    from huggingface_hub import (  # slow to import, and needed for names of the Hub alone
        hf_hub_download,
        snapshot_download,
    )
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{name} is no folder here, and as a model of the Hugging Face Hub it"
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": None if cache_dir is None else Path(cache_dir),
        "token": token,
        "local_files_only": local_files_only,
    }
    try:
        with suppress(EntryNotFoundError):  # most often: it is a model of ours
            hf_hub_download(name, INDEX, **options)
            return download_base(name, **options)
        folder = snapshot_download(name, allow_patterns=FILES, **options)
    except UserError:
        raise
    except GatedRepoError as error:
        raise CheckpointError(
            f"{where} asks for permission: accept its terms there, then log in (hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{where} has no revision '{revision}': choose one that it has") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(f"{where} was not found: check the spelling, or log in if it is private") from error
    except Exception as error:  # of many kinds, by the network's library: offline, refused, timed out, a full disk
        raise CheckpointError(
            f"{where} could not be fetched ({_reason(error)}): check the network, or give a folder on this disk"
        ) from error
    return Path(folder)


def upload(
    folder: str | os.PathLike[str],
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Put a model folder at OWNER/NAME, which is made where there is none; returns the address of the change.

    Raises CheckpointError where that is not allowed, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if not isinstance(name, str) or not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name!r} is no name on the Hugging Face Hub: write OWNER/NAME")
    try:
        api = HfApi(token=token)
        api.create_repo(name, private=private, exist_ok=True)
        change = api.upload_folder(
            repo_id=name,
            folder_path=Path(folder),
            revision=revision,
            commit_message=commit_message or "Upload an AICL model",
        )
    except Exception as error:  # as above
        raise CheckpointError(
            f"{name} could not be written on the Hugging Face Hub ({_reason(error)}): log in (hf auth login) with a "
            "token that may write, and check the network"
        ) from error
    return str(change)


def _reason(error: BaseException) -> str:
    """The first line of what a library says, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".:") if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
