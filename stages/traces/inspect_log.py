"""Read inspect's logs: `.eval`, a zip file with one member per sample, and `.json`.

A sample has its conversation under `messages`. Tool definitions and token counts are in its model
events. Long texts are stored separately as attachments.
Layout: `inspect_ai.log` of 0.3.285, log version 2. Version 1 is migrated as inspect does.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.traces.calls import as_text
from stages.traces.definitions import tool_definitions
from stages.traces.envelopes import text_of
from stages.traces.fields import BadItemError, is_number, name_in, object_of
from stages.traces.formats import ReadOptions, Whole
from stages.traces.stream import FETCH_AGAIN, MOST_RATIO, MOST_UNZIPPED, BrokenJsonError, parse

NAME = "inspect"
MAGIC = b"PK\x03\x04"  # first bytes of a zip file
SAMPLE = re.compile(r"samples/(.+)_epoch_(\d+)\.json")
ZSTD = 93  # zip compression method
LOCAL_HEADER = struct.Struct("<26xHH")  # precedes a member: lengths of its name and extra field
HEADERS = ("header.json", "_journal/start.json")  # the second is in unfinished logs
LOG = "log"  # key of a sample that holds the header of its log
UNREADABLE = "unreadable"  # key of a placeholder for an unreadable sample; holds the error
ATTACHED = ("attachment://", "tc://")  # the second is in logs of version 1
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partial, incorrect, no answer
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
# Stop reasons of answers that were cut off; older logs have "length" for "max_tokens".
CUT_OFF = frozenset({"max_tokens", "model_length", "length"})
NEWEST = 2  # newest known log version
AS_WRITTEN = "give the log as inspect wrote it"
AS_JSON = "rewrite it by inspect log convert --to json"

Record = dict[str, Any]


def accepts(record: Record) -> bool:
    """Return whether a record is a sample of a log."""
    if UNREADABLE in record and len(record) == 1:
        return True
    has_parts = all(key in record for key in ("id", "epoch", "input", "target"))
    return has_parts and isinstance(record.get("messages", []), list)


def holds(document: Record) -> bool:
    """Return whether a document is a log."""
    spec = document.get("eval")
    return isinstance(spec, dict) and "status" in document and "version" in document


def whole(document: Record | list[Record], path: str, notes: Counter[str]) -> Whole:
    """Return the samples of a log, each with the header of the log."""
    if isinstance(document, list):  # samples without their log
        return Whole(document, place="sample")
    samples = document.get("samples") or []
    if not isinstance(samples, list):
        raise BadItemError("'samples' is not a list", AS_WRITTEN)
    header = _header(document)
    known = [{**sample, LOG: header} if isinstance(sample, dict) else sample for sample in samples]
    return Whole(known, place="sample")


def unpack(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield (place, sample) of each sample in an .eval file; memory holds one at a time.

    Raises:
        InputError: the file is not a log, is broken, or uses an unknown compression method.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}  # the last of a name
            samples = [name for name in members if SAMPLE.fullmatch(name)]
            start = next((name for name in HEADERS if name in members), None)
            if start is None:
                todo = "give an .eval file of inspect, or the trace itself"
                raise InputError(str(path), "is a zip file, not a log of inspect", todo)
            header = _opened(archive, members[start], path)
            if not samples:
                raise InputError(str(path), "is a log without samples", "give one with samples")
            for name in sorted(samples, key=_in_order):
                yield name, _sample(archive, members[name], path, header)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(str(path), f"broken zip file ({error})", FETCH_AGAIN) from None


def _opened(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Record:
    try:
        return _header(_member(archive, member, path))
    except BadItemError as bad:
        raise InputError(f"{path}:{member.filename}", bad.what, bad.todo) from None


def _in_order(name: str) -> tuple[int, int, str]:
    """Return a sort key: by epoch, then by sample id (2 before 10, numbers before text)."""
    parts = SAMPLE.fullmatch(name)
    assert parts is not None
    sample, epoch = parts[1], int(parts[2])
    return epoch, int(sample) if sample.isdecimal() else 1 << 62, sample


def _sample(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, header: Record
) -> Record:
    try:
        sample = _member(archive, member, path)
    except BadItemError as bad:
        return {UNREADABLE: bad.what}
    return {**sample, LOG: header} if isinstance(sample, dict) else {UNREADABLE: "is no object"}


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Any:
    """Read the JSON value of a member.

    Raises:
        InputError: the member uses an unknown compression method.
        BadItemError: the member is broken.
    """
    try:
        data = _data(archive, member, path)
    except NotImplementedError:
        what = f"'{member.filename}' is compressed by a method that is not known here"
        raise InputError(str(path), what, AS_JSON) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadItemError(f"broken zip data ({error})", FETCH_AGAIN) from None
    try:
        return parse(data)[0]
    except BrokenJsonError as error:
        raise BadItemError(f"{error.what} at byte {error.offset}", FETCH_AGAIN) from None


def _data(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> bytes:
    """Read the bytes of a member.

    zipfile reads zstd only from Python 3.14 on, or if a package such as inspect_ai has patched it,
    and each variant raises its own errors. Polars reads it in the same way everywhere.
    """
    if member.file_size > max(MOST_UNZIPPED, MOST_RATIO * member.compress_size):
        what = f"its member '{member.filename}' unzips to {MOST_RATIO} times its size and more"
        raise InputError(str(path), what, "write the log as .json, if memory holds it")
    if member.compress_type == ZSTD:
        import polars as pl

        if hasattr(pl, "read_lines"):
            return _unzstd(member, path)
    return archive.read(member)


def _unzstd(member: zipfile.ZipInfo, path: Path) -> bytes:
    """Read a zstd-compressed member, the form that inspect writes now.

    Polars splits the decompressed text into lines. JSON does not depend on line endings.

    Raises:
        BadItemError: the member is broken.
    """
    import polars as pl

    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(LOCAL_HEADER.size)
        name, extra = LOCAL_HEADER.unpack(header.ljust(LOCAL_HEADER.size, b"\0"))
        file.seek(name + extra, io.SEEK_CUR)
        stored = file.read(member.compress_size)
    try:
        lines = pl.read_lines(io.BytesIO(stored)).to_series()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadItemError(f"broken zstd data ({error!s:.40})", FETCH_AGAIN) from None
    return "\n".join(lines).encode()


def _header(document: Any) -> Record:
    """Return the part of a log that applies to all its samples.

    Raises:
        BadItemError: the log has a newer version, which inspect of this version rejects too.
    """
    document = document if isinstance(document, dict) else {}
    version = document.get("version")
    if isinstance(version, int) and version > NEWEST:
        raise BadItemError(f"is a log of version {version}", f"give one of version 1 or {NEWEST}")
    spec = document.get("eval")
    return {
        "eval": spec if isinstance(spec, dict) else {},
        "invalidated": document.get("invalidated"),
    }


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of one sample.

    Raises:
        BadItemError: the sample can't be read, or a part of it is malformed.
    """
    if UNREADABLE in record:
        raise BadItemError(record[UNREADABLE], FETCH_AGAIN)
    sample = _migrated(record)
    messages = sample.get("messages") or []
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise BadItemError("'messages' is no list of objects", AS_WRITTEN)
    attached = sample.get("attachments")
    texts = attached if isinstance(attached, dict) else {}
    clean = _named(sample) | _ending(sample)
    told, written = _of_events(sample, texts)
    if told:
        clean["tools"] = told
    given = set[str]()  # ids of calls in the input, which the model did not make
    clean["messages"] = [
        part for message in messages for part in _message(_resolved(message, texts), given, written)
    ]
    yield clean


def _migrated(sample: Record) -> Record:
    """Return a sample with the field names of version 2."""
    moved = dict(sample)
    if "score" in moved and not moved.get("scores"):
        moved["scores"] = {"score": moved["score"]} if moved["score"] is not None else None
    transcript = moved.get("transcript")
    if isinstance(transcript, dict):
        moved.setdefault("events", transcript.get("events"))
        moved.setdefault("attachments", transcript.get("content"))
    return moved


def _resolved(value: Any, texts: Record) -> Any:
    """Replace each reference to an attachment in a value by its text."""
    if not texts:
        return value
    if isinstance(value, str):
        for protocol in ATTACHED:
            if value.startswith(protocol):
                return texts.get(value[len(protocol) :], value)
        return value
    if isinstance(value, list):
        return [_resolved(item, texts) for item in value]
    if isinstance(value, dict):
        return {key: _resolved(item, texts) for key, item in value.items()}
    return value


def _named(sample: Record) -> Record:
    """Return task, epoch, episode id, model and evaluation of a sample."""
    spec = object_of(sample, LOG).get("eval") or {}
    output = sample.get("output")
    model = name_in(spec, "model")
    named = {
        "task_id": sample.get("id"),
        "trial": sample.get("epoch"),
        "episode_id": name_in(sample, "uuid"),
        "model": model or (name_in(output, "model") if isinstance(output, dict) else None),
        "env": name_in(spec, "task"),
    }
    return {key: value for key, value in named.items() if value is not None}


def _ending(sample: Record) -> Record:
    """Return status, scores and stop reason of a sample."""
    scores = _scores(sample)
    ending: Record = {"rewards": scores} if scores else {}
    if (error := sample.get("error")) is not None:
        return ending | {"status": "error", "stop": _error(error)}
    if sample.get("invalidation") or object_of(sample, LOG).get("invalidated") is True:
        return ending | {"status": "masked", "stop": "invalidated"}
    if limit := sample.get("limit"):
        kind = name_in(limit, "type") if isinstance(limit, dict) else str(limit)
        return ending | {"status": "truncated", "stop": kind or "limit"}
    output = sample.get("output")
    stop = _stop_reason(output) if isinstance(output, dict) else None
    status = "truncated" if stop in CUT_OFF else "ok"
    return ending | {"status": status} | ({"stop": stop} if stop else {})


def _stop_reason(output: Record) -> str | None:
    """Return why the model's last answer ended; None if it is not recorded."""
    choices = output.get("choices")
    last = choices[-1] if isinstance(choices, list) and choices else None
    return name_in(last, "stop_reason") if isinstance(last, dict) else None


def _error(error: Any) -> str:
    """Return the class of an error if its message begins with it, else the message."""
    message = name_in(error, "message") if isinstance(error, dict) else str(error)
    named = re.match(r"[A-Za-z_.]*[A-Za-z](?=\()", message or "")
    return named[0] if named else (message or "error")[:100]


def _scores(sample: Record) -> dict[str, float | None]:
    """Return each score as a number; a score with several parts gives NAME.PART for each part."""
    scores: dict[str, float | None] = {}
    for name, score in object_of(sample, "scores").items():
        value = score.get("value") if isinstance(score, dict) else score
        parts: dict[str, Any] = {name: value}
        if isinstance(value, dict):
            parts = {f"{name}.{part}": item for part, item in value.items()}
        elif isinstance(value, list):
            parts = {f"{name}.{place}": item for place, item in enumerate(value)}
        scores |= {part: _number(item) for part, item in parts.items()}
    return scores


def _number(value: Any) -> float | None:
    """Convert a score as inspect does, except that a value without meaning is None, not 0."""
    if isinstance(value, str):
        if value in GRADES:
            return GRADES[value]
        if value.lower() in WORDS:
            return WORDS[value.lower()]
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if is_number(value) and math.isfinite(value) else None


def _of_events(sample: Record, texts: Record) -> tuple[list[Record], dict[str, int]]:
    """Return (tool definitions of all model calls, tokens written by message id)."""
    told: dict[str, Any] = {}
    written: dict[str, int] = {}
    events = sample.get("events")
    for event in events if isinstance(events, list) else ():
        if not isinstance(event, dict) or event.get("event") != "model":
            continue
        tools = event.get("tools")
        for tool in tools if isinstance(tools, list) else ():
            if isinstance(tool, dict) and (name := name_in(tool, "name")) and name not in told:
                told[name] = _resolved(tool, texts)
        output = object_of(event, "output")
        usage, choices = output.get("usage"), output.get("choices")
        count = usage.get("output_tokens") if isinstance(usage, dict) else None
        first = choices[0] if isinstance(choices, list) and choices else None
        message = first.get("message") if isinstance(first, dict) else None
        if type(count) is int and isinstance(message, dict) and name_in(message, "id"):
            written[message["id"]] = count
    return tool_definitions(list(told.values())) or [], written


def _message(message: Record, given: set[str], written: Mapping[str, int]) -> list[Record]:
    """Return a message in OpenAI's form, and the results of server-side tools in it."""
    role, content = message.get("role"), message.get("content")
    if role == "assistant":
        return _spoken(message, given, written)
    if role != "tool":
        return [{"role": role, "content": text_of(content)}]
    error = message.get("error") or message.get("tool_error")
    clean: Record = {"role": "tool", "content": text_of(content)}
    if error:
        told = name_in(error, "message") if isinstance(error, dict) else str(error)
        clean |= {"content": clean["content"] or told or "", "error": True}
    if call_id := name_in(message, "tool_call_id"):
        clean["tool_call_id"] = call_id
        if call_id in given:
            clean["sampled"] = False
    if name := name_in(message, "function"):
        clean["name"] = name
    return [clean]


def _spoken(message: Record, given: set[str], written: Mapping[str, int]) -> list[Record]:
    """Convert an assistant message; one from the input is marked as not sampled."""
    blocks = message.get("content")
    parts = [part for part in blocks if isinstance(part, dict)] if isinstance(blocks, list) else []
    served = [part for part in parts if part.get("type") == "tool_use"]
    clean: Record = {"role": "assistant", "content": text_of(blocks) if not parts else _said(parts)}
    thoughts = "".join(str(p.get("reasoning") or "") for p in parts if p.get("type") == "reasoning")
    if thoughts:
        clean["reasoning_content"] = thoughts
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadItemError(f"'tool_calls' is {calls!r:.40}, not a list", AS_WRITTEN)
    entries = [_call(part.get("id"), part.get("name"), part.get("arguments")) for part in served]
    entries += [_made(call) for call in calls]
    if entries:
        clean["tool_calls"] = entries
    if message.get("source") == "input":
        clean["sampled"] = False
        given |= {entry["id"] for entry in entries if entry["id"]}
    elif (count := written.get(message.get("id") or "")) is not None:
        clean["n_tokens"] = count
    return [clean, *(_served(part, clean) for part in served)]


def _said(parts: list[Record]) -> str:
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")


def _made(call: Any) -> Record:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, str):
        raise BadItemError(f"has an invalid call: {call!r:.60}", AS_WRITTEN)
    return _call(call.get("id"), function, call.get("arguments"))


def _call(call_id: Any, name: Any, arguments: Any) -> Record:
    function = {"name": name, "arguments": as_text(arguments)}
    return {"id": call_id, "type": "function", "function": function}


def _served(part: Record, spoken: Record) -> Record:
    """Return the result of a server-side tool call."""
    result = {
        "role": "tool",
        "tool_call_id": part.get("id"),
        "content": text_of(part.get("result")),
    }
    if part.get("error"):
        result |= {"content": result["content"] or str(part["error"]), "error": True}
    return result | ({"sampled": False} if "sampled" in spoken else {})
