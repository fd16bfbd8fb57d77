"""The known trace formats, and how to detect the format of a record, a document or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.tables.near import description, near_format
from stages.traces import (
    adk,
    agents_sdk,
    anthropic,
    atif,
    batch,
    chat,
    dumps,
    gemini,
    inspect_log,
    langfuse,
    langsmith,
    message_list,
    messages,
    nemo_gym,
    otel,
    responses,
    sharegpt,
    tau2,
    tau_bench,
    verifiers,
    verifiers_v0,
)
from stages.traces.formats import KNOWN, Format
from stages.traces.stream import readable

# At most one format accepts a record, except for the last, which accepts any with `messages`.
FORMATS = (
    Format(tau_bench.NAME, tau_bench.accepts, tau_bench.translate, complete=tau_bench.complete),
    Format(verifiers.NAME, verifiers.accepts, verifiers.translate, files=verifiers.files),
    Format(
        verifiers_v0.NAME,
        verifiers_v0.accepts,
        verifiers_v0.translate,
        beside=verifiers_v0.beside,
        files=verifiers_v0.files,
    ),
    Format(atif.NAME, atif.accepts, atif.translate, beside=atif.beside, files=atif.files),
    Format(
        tau2.NAME,
        tau2.accepts,
        tau2.translate,
        complete=tau2.complete,
        holds=tau2.holds,
        whole=tau2.whole,
        finish=tau2.finish,
        files=tau2.files,
    ),
    Format(
        nemo_gym.NAME,
        nemo_gym.accepts,
        nemo_gym.translate,
        complete=nemo_gym.complete,
        beside=nemo_gym.beside,
        files=nemo_gym.files,
    ),
    Format(
        inspect_log.NAME,
        inspect_log.accepts,
        inspect_log.translate,
        holds=inspect_log.holds,
        whole=inspect_log.whole,
        magic=inspect_log.MAGIC,
        unpack=inspect_log.unpack,
    ),
    Format(otel.NAME, otel.accepts, otel.translate, gather=otel.gather),
    Format(langsmith.NAME, langsmith.accepts, langsmith.translate, gather=langsmith.gather),
    Format(langfuse.NAME, langfuse.accepts, langfuse.translate, gather=langfuse.gather),
    Format(agents_sdk.NAME, agents_sdk.accepts, agents_sdk.translate, gather=agents_sdk.gather),
    Format(batch.NAME, batch.accepts, batch.translate, gather=batch.gather),
    Format(responses.NAME, responses.accepts, responses.translate, gather=responses.gather),
    Format(gemini.NAME, gemini.accepts, gemini.translate, gather=gemini.gather),
    Format(adk.NAME, adk.accepts, adk.translate),
    Format(anthropic.NAME, anthropic.accepts, anthropic.translate, gather=anthropic.gather),
    Format(chat.NAME, chat.accepts, chat.translate, gather=chat.gather),
    Format(sharegpt.NAME, sharegpt.accepts, sharegpt.translate),
    Format(
        message_list.NAME, message_list.accepts, message_list.translate, gather=message_list.gather
    ),
    Format(dumps.TRL, dumps.accepts_trl, dumps.translate_trl),
    Format(dumps.VERL, dumps.accepts_verl, dumps.translate_verl),
    Format(messages.NAME, messages.accepts, messages.translate),
)

MESSAGES = FORMATS[-1]


def format_of(record: dict[str, Any]) -> Format | None:
    """Return the format of a single record; None if it is unknown."""
    return next((format for format in FORMATS if format.accepts(record)), None)


def format_held(document: Any) -> Format | None:
    """Return the format of the records in a document; None if it holds none."""
    if not isinstance(document, dict):
        return None
    return next((format for format in FORMATS if format.holds and format.holds(document)), None)


def format_of_file(path: str) -> Format | None:
    """Return the format of a binary file, by its first bytes; None for any other file."""
    magics = {format.magic: format for format in FORMATS if format.magic}
    if not magics or path == "-" or not Path(path).is_file():
        return None
    with readable(path), Path(path).open("rb") as file:
        head = file.read(16)
    return next((magics[magic] for magic in magics if head.startswith(magic)), None)


def unknown_trace(document: Any, where: str) -> InputError:
    """Return the error to raise for JSON that is not a trace."""
    from stages.tables.recognise import of_columns  # imports polars

    record = document[0] if isinstance(document, list) and document else document
    if isinstance(record, dict) and (kind := of_columns(record)):
        return InputError(where, f"not a trace but {kind.name}", "give the traces themselves")
    if near := near_format(document):
        several = "a list that begins with " if isinstance(document, list) else ""
        return InputError(where, f"is {several}{near.name}, which is not read", near.todo)
    return InputError(where, f"is no known trace: {description(document)}", KNOWN)
