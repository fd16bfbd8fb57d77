"""Model folders for `tests.fuzz`: a tiny model of which one file is another, in every loader.

An input is the name of the file as JSON, a line break, and what stands in the file. HEADER stands
for the header of the weights, which follow it as they are.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import orjson

from stages.errors import InputError

HEADER, WEIGHTS = "header", "model.safetensors"
LENGTH = 8  # bytes that hold the length of the header


def whole() -> Path:
    """Make the model, of 7,000 parameters, which all inputs share."""
    from stages.training.tiny_model import Size, make_tiny_model

    folder = Path(mkdtemp(prefix="irc-fuzz-"))
    atexit.register(shutil.rmtree, folder)
    make_tiny_model(folder, ["hello"], seed=0, size=Size(1, 16, 16, 2, 1, 512))
    return folder


def seeds(model: Path) -> list[bytes]:
    """Return each file of a model as an input that every loader takes."""
    weights = (model / WEIGHTS).read_bytes()
    files = {path.name: path.read_bytes() for path in sorted(model.iterdir())}
    files[HEADER] = weights[LENGTH : LENGTH + int.from_bytes(weights[:LENGTH], "little")]
    return [_seed(name, content) for name, content in files.items()]


def _seed(name: str, content: bytes) -> bytes:
    if name == HEADER or name.endswith(".json"):
        content = orjson.dumps(orjson.loads(content))  # one line
    return orjson.dumps(name) + b"\n" + content


def read(model: Path, data: bytes, folder: Path) -> None:
    """Load a model of which one file is another, and let it answer."""
    from stages.messages.cutter import Cutter
    from stages.messages.tokenizer import load_tokenizer
    from stages.training.model import learner, load_model
    from stages.training.plan import Setup, describe, read_config

    line, _, content = data.partition(b"\n")
    changed = folder / "model"
    shutil.copytree(model, changed)
    write(changed, orjson.loads(line), content)
    path = str(changed)
    loads: list[Callable[[], Any]] = [
        lambda: learner(load_model(path)[0]),
        lambda: Cutter(load_tokenizer(path)),
        lambda: asyncio.run(answer(path)),
    ]
    if b"config.json" in line:  # slow
        loads.append(lambda: describe(read_config(path), Setup(8)))
    for load in loads:
        with suppress(InputError):
            load()


def write(folder: Path, name: Any, content: bytes) -> None:
    """Put the content of an input into its file; a file that is nobody's is missing."""
    if name == HEADER:
        weights = (folder / WEIGHTS).read_bytes()
        tensors = weights[LENGTH + int.from_bytes(weights[:LENGTH], "little") :]
        header = content.rstrip(b"\n")
        (folder / WEIGHTS).write_bytes(len(header).to_bytes(LENGTH, "little") + header + tensors)
    elif isinstance(name, str) and name in {path.name for path in folder.iterdir()}:
        (folder / name).write_bytes(content)


async def answer(path: str) -> None:
    """Let a model write two tokens."""
    from stages.policies.policy import ContextOverflowError, PolicyError, Sampling
    from stages.policies.transformers_policy import TransformersPolicy

    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    policy = TransformersPolicy.load(path, device="cpu")
    try:
        policy.told([tool])
        messages = [{"role": "user", "content": "hello"}]
        await policy.act("x", messages, [tool], Sampling(max_tokens=2), 0)
    except (PolicyError, ContextOverflowError):  # end the episode
        pass
    finally:
        await policy.close()
