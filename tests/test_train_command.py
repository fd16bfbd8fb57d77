"""`irc-cli train` from end to end, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs irc-cli[train]")

import torch
from transformers import AutoModelForCausalLM

from tests.conftest import Cli
from tests.learning import NO, YES, Played, metrics, played, tokens_of


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return played(tmp_path_factory.mktemp("played"))


def said(folder: str, files: Played, token: int) -> float:
    """Mean log-probability of the first token of the episodes that begin with it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for row in tokens_of(files):
        if row["turn"] == 0 and row["token_ids"][0] == token:
            with torch.no_grad():
                logits = model(torch.tensor([row["prompt_ids"]])).logits[0, -1]
            found.append(torch.log_softmax(logits, -1)[token].item())
    return sum(found) / len(found)


def test_what_was_rewarded_becomes_likelier(run: Cli, files: Played) -> None:
    ended = run(*files.args, "-o", "out", "--lr", "3e-3", "--epochs", "4", "--batch-size", "8")
    assert (ended.code, ended.out, ended.err) == (0, b"", "")
    assert ended.err == (
        "16 sequences, 171 tokens to learn; 4 groups; 0 dropped groups; 0 retokenised episodes\n"
        "wrote out\n"
    )
    assert [line["step"] for line in metrics(Path("out"))] == list(range(1, 9))
    assert said("out", files, YES) > said(files.model, files, YES) + 1
    assert said("out", files, NO) < said(files.model, files, NO) - 1
