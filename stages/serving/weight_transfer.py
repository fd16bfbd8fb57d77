"""Transfer of weights to a running vLLM server over NCCL, with vLLM's weight-transfer client.

The folder is read here and broadcast from this machine's GPU, so the server needs no access to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.serving.endpoint import EndpointError

ROUTE = "/init_weight_transfer_engine"


def can_send() -> bool:
    """Return whether this process can send weights.

    Returns:
        True if vLLM is installed and there is a GPU.
    """
    if find_spec("vllm") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def takes_nccl(server_info: Any) -> bool:
    """Return whether a server was started with `--weight-transfer-config '{"backend": "nccl"}'`.

    Args:
        server_info: its answer to `/server_info?config_format=json`.

    Returns:
        True if it accepts weights over NCCL.
    """
    try:
        return bool(server_info["vllm_config"]["weight_transfer_config"]["backend"] == "nccl")
    except (LookupError, TypeError):
        return False


def send_weights(
    root: str, folder: str, workers: int, timeout_s: float, device: str = "cuda"
) -> None:
    """Send a checkpoint to a server, tensor by tensor.

    Args:
        root: URL of the server, without `/v1`.
        folder: folder with safetensors files.
        workers: number of server processes that hold a part of the model.
        timeout_s: timeout of a request in seconds.
        device: device from which tensors are broadcast.

    Raises:
        EndpointError: the server or NCCL failed.
    """
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_ip, get_open_port

    client = HTTPVLLMWeightSyncClient(root, timeout_s)
    meeting = NCCLTrainerInitInfo(get_ip(), get_open_port(), 1 + workers, rank=0)
    source: Any = Checkpoint(folder, device)  # has the interface of vLLM's WeightSource
    try:
        engine = WeightTransferTrainerFactory.trainer_init(meeting, client=client, source=source)
        try:
            engine.send_weights()
        finally:
            engine.shutdown()
        client.shutdown_weight_transfer_engine()
    except (OSError, RuntimeError) as error:  # from requests; from torch and NCCL
        raise EndpointError(f"weight transfer: {error}") from error


class Checkpoint:
    """The tensors of a folder's safetensors files, one in memory at a time."""

    def __init__(self, folder: str, device: str) -> None:
        self._files = sorted(Path(folder).glob("*.safetensors"))
        self._device = device

    def metadata(self) -> list[Any]:
        """Return the name, dtype and shape of each tensor, in the order of iteration."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [
            ParamMeta(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._tensors("cpu")
        ]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._tensors(self._device)

    def _tensors(self, device: str) -> Iterator[tuple[str, Any]]:
        from safetensors import safe_open

        for path in self._files:
            with safe_open(path, framework="pt", device=device) as file:
                for name in file.keys():  # noqa: SIM118  # the file is not a dict
                    yield name, file.get_tensor(name)
