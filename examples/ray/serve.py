"""Serve vLLM replicas behind one address with Ray Serve LLM.

    python examples/ray/serve.py models/qwen --replicas 2
    irc-cli rollout --policy openai --model policy --base-url http://127.0.0.1:8000/v1 ...

Ray finds the cluster that RAY_ADDRESS names, or starts one on this machine. Needs
`pip install 'ray[llm]'`; with vLLM's CPU build, see `make test-ray`.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.llm import LLMConfig, build_openai_app

ENGINE = {
    "logprobs_mode": "processed_logprobs",  # of the sampling distribution: temperature, top-p
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
}
# Keeps each episode on one replica, whose prefix cache holds its earlier turns.
STICKY = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
)
# vLLM's CPU build crashes on chunked prefill if the request has a seed.
ON_CPU = {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
CPU_ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def config(model: str, replicas: int, *, cpu: bool) -> LLMConfig:
    """Return the configuration of `replicas` engines that serve a model as `policy`."""
    where: dict[str, Any] = {}
    if cpu:
        where = {"accelerator_config": {"kind": "cpu"}, "runtime_env": {"env_vars": CPU_ENV}}
    return LLMConfig(
        model_loading_config={"model_id": "policy", "model_source": model},
        deployment_config={"num_replicas": replicas, "request_router_config": STICKY},
        engine_kwargs=ENGINE | (ON_CPU if cpu else {}),
        **where,
    )


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or name of the model")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--cpu", action="store_true", help="vLLM's CPU build")
    given = parser.parse_args()
    if given.cpu:  # Ray reserves 2 cores per replica and 1 for the router; claim that many
        ray.init(num_cpus=2 * given.replicas + 2)
    serve.start(http_options={"port": given.port})
    described = config(given.model, given.replicas, cpu=given.cpu)
    serve.run(build_openai_app({"llm_configs": [described]}), blocking=True)


if __name__ == "__main__":
    main()
