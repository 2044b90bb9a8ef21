"""Why a pretrained encoder could not be loaded, in one sentence for its user."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import transformers
from huggingface_hub import constants as hub
from huggingface_hub import errors as hub_errors

from adalora.errors import UserError, is_out_of_memory
from adalora.shell import program
from adalora.storage.hub import limit_waiting


@contextlib.contextmanager
def explain_loading_errors(name: str, what: str = "model") -> Iterator[None]:
    """Turn what the libraries raise into one sentence about ``name``; wait for none for ever."""
    limit_waiting()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each hub, file and format problem has a class of its own
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise UserError(
                f"The {what} {name!r} brings code of its own, which is refused; "
                "--trust_remote_code allows it if you trust its author."
            ) from error
        # Lacking either, transformers tries SentencePiece files as tiktoken's, and complains of it.
        lacking = [p for p in ("sentencepiece", "google.protobuf") if not _is_installed(p)]
        if what == "tokenizer" and lacking:
            packages = " ".join(package.removeprefix("google.") for package in lacking)
            raise UserError(
                f"The tokenizer of {name!r} needs what is not installed: type "
                f"'{program('pip')} install {packages}'."
            ) from error
        if reason := _hub_reason(error):
            raise UserError(
                f"The {what} {name!r} could not be had: {reason}. A local folder "
                "serves as well, or 'nano', the built-in model."
            ) from error
        if len(text) > 200:
            text = text[:200].rsplit(" ", 1)[0] + " ..."
        raise UserError(
            f"The {what} {name!r} could not be loaded ({text}): its files are damaged, incomplete "
            "or of another kind; fetch them anew, or name another."
        ) from error


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _hub_reason(error: BaseException | None) -> str | None:
    """Why the hub did not serve, and what to do; None where the hub is not the cause."""
    while error is not None:
        if isinstance(error, hub_errors.GatedRepoError):
            return "it is gated; accept its terms on the hub and log in with 'hf auth login'"
        if isinstance(error, hub_errors.RevisionNotFoundError):
            return "it has no such revision; see its branches and tags on the hub"
        if isinstance(error, hub_errors.RepositoryNotFoundError):
            return "the hub has none of that name, or it is private; check it, or 'hf auth login'"
        if isinstance(error, hub_errors.HFValidationError):
            return "that is no hub id, which reads owner/model"
        # The client's own errors: httpx, which recent releases carry under another name.
        broke_off = type(error).__module__.startswith("httpx")
        if broke_off or isinstance(error, hub_errors.LocalEntryNotFoundError | ConnectionError):
            if hub.HF_HUB_OFFLINE:
                return "the hub is switched off (HF_HUB_OFFLINE) and the cache lacks it"
            return (
                "the hub cannot be reached or does not answer as it should, and the cache lacks "
                "it; fill the cache where there is a network, and HF_HUB_OFFLINE=1 then asks it "
                "alone"
            )
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' report on a head that is new, which is what is wanted here."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
