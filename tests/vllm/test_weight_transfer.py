"""Weights by vLLM's weight-transfer API, up to NCCL itself, which needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make test-vllm sets vLLM up")

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer import nccl_engine

from stages.serving.endpoint import EndpointError
from stages.serving.weight_transfer import can_send, send_weights
from tests.mock_openai import MockServer, Reply, Routes, fails, says

STEPS = [
    *("init_weight_transfer_engine", "start_weight_update", "update_weights"),
    *("finish_weight_update", "shutdown_weight_transfer_engine"),
]
ROUTES: Routes = {f"/{step}": lambda body: Reply(b"{}") for step in STEPS}


class Group:
    """What NCCL would make of the processes."""

    def destroy(self) -> None:
        pass


@pytest.fixture
def broadcast(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The tensors that were sent, in the place of NCCL."""
    sent: dict[str, torch.Tensor] = {}
    engine = nccl_engine.NCCLTrainerWeightTransferEngine
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda meeting: Group())
    monkeypatch.setattr(engine, "_broadcast", lambda self, source, meta: sent.update(source))
    monkeypatch.setattr(engine, "_post_send_sync", lambda self: None)
    return sent


def send(server: MockServer, folder: Path) -> None:
    send_weights(server.base_url.removesuffix("/v1"), str(folder), 2, 30.0, device="cpu")


def test_a_checkpoint_is_sent_whole(checkpoint: Path, broadcast: dict[str, torch.Tensor]) -> None:
    with MockServer(lambda *_: says("?"), ROUTES) as server:
        send(server, checkpoint)
    assert [path.removeprefix("/") for path, _ in server.controls] == STEPS
    asked: dict[str, Any] = dict(server.controls)
    meeting = asked["/init_weight_transfer_engine"]["init_info"]
    assert (meeting["rank_offset"], meeting["world_size"]) == (1, 3)
    told = asked["/update_weights"]["update_info"]
    held = load_file(checkpoint / "model.safetensors")
    assert told["names"] == list(broadcast)
    assert broadcast.keys() == held.keys()
    for name, kind, shape in zip(told["names"], told["dtype_names"], told["shapes"], strict=True):
        assert (kind, shape) == ("float32", list(held[name].shape))
        assert torch.equal(broadcast[name], held[name])


def test_a_server_that_refuses(checkpoint: Path, broadcast: dict[str, torch.Tensor]) -> None:
    refusing = {**ROUTES, "/start_weight_update": lambda body: fails(500)}
    with MockServer(lambda *_: says("?"), refusing) as server, pytest.raises(EndpointError):
        send(server, checkpoint)
    assert not broadcast


def test_this_machine_sends_where_it_has_a_gpu() -> None:
    assert can_send() == torch.cuda.is_available()
