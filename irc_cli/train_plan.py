"""`irc-cli train --plan`: print parameters, memory by part, and whether a run fits."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from typing import Any

from irc_cli import console
from stages.training.batches import MOST_PACKED
from stages.training.pass_size import fitting_tokens, here
from stages.training.plan import (
    RESERVE,
    Architecture,
    Setup,
    describe,
    fits,
    memory,
    read_config,
    reference_peak,
    remedies,
)

LONGEST = 4096  # tokens of the longest episode: an assumption, since a plan reads no episodes
_GB = 1e9
_NOTES = {
    "longest": "an episode longer than --pack-tokens has a pass, and needs the memory, of its own",
    "alone": "sequences of this model can't share a pass: the longest of them counts as the tokens",
}


def show_plan(model: str, reference: str | None, setup: Setup, *, as_json: bool) -> None:
    """Print the memory that a run would take on each device.

    Args:
        model: a folder with a config.json, or a model of the hub.
        reference: the same for the reference model of the KL; None: there is no other model.
        setup: setup of the run; 0 devices or 0 GB: as torch finds them here; 0 tokens: as many as
            fit.
        as_json: print a JSON document.
    """
    setup = here(setup)
    config = read_config(model)

    @cache
    def traced(bf16: bool, lora_rank: int | None) -> Architecture:
        return describe(config, Setup(0, bf16=bf16, lora_rank=lora_rank))

    def described(changed: Setup) -> Architecture:
        return traced(changed.bf16, changed.lora_rank)

    architecture = described(setup)
    if not setup.tokens:
        setup = replace(setup, tokens=_tokens(architecture, setup))
    parts = memory(architecture, setup)
    before = None
    if reference:
        other = describe(read_config(reference), replace(setup, lora_rank=None))
        before = reference_peak(architecture, other, setup)
    peak = max(parts.peak, before or 0.0)
    document = {
        "model": model,
        "parameters": {
            name: getattr(architecture, name) for name in ("parameters", "trained", "active")
        },
        "setup": asdict(setup),
        "bytes": asdict(parts) | {"reference": before, "peak": peak},
        "fits": fits(peak, setup),
        "turn": [] if fits(peak, setup) else remedies(setup, described),
        "note": _NOTES["longest" if architecture.packable else "alone"],
    }
    if as_json:
        console.print_json(document)
    else:
        _report(document, setup)


def _tokens(model: Architecture, setup: Setup) -> int:
    """Return the default tokens per pass; a constant if sequences can't share a pass."""
    return fitting_tokens(model, setup, LONGEST) if model.packable else MOST_PACKED


def _report(document: dict[str, Any], setup: Setup) -> None:
    screen = console.console()
    counts = document["parameters"]
    screen.print(
        f"{document['model']}: {counts['parameters']:,} parameters, {counts['trained']:,} trained, "
        f"{counts['active']:,} active for a token",
        soft_wrap=True,
    )
    kind = f"LoRA of rank {setup.lora_rank}" if setup.lora_rank else "full fine-tuning"
    how = [kind, "bf16" if setup.bf16 else "float32", f"{setup.tokens:,} tokens a pass"]
    how += ["gradient checkpointing"] * setup.gradient_checkpointing
    screen.print(", ".join(how))
    table = console.table("on each device", "GB")
    for name, size in document["bytes"].items():
        if size:
            table.add_row(name, f"{size / _GB:,.1f}")
    screen.print(table)
    devices = f"{setup.devices:,} x {setup.device_gb:,.0f} GB, {RESERVE:.0%} of it kept free"
    screen.print(f"{'fits' if document['fits'] else 'does not fit'} {devices}")
    if not document["fits"]:
        turn = "; or ".join(document["turn"]) or "nothing helps here: take a smaller model"
        screen.print(f"turn: {turn}", soft_wrap=True)
    screen.print(f"note: {document['note']}", soft_wrap=True)
