"""`irc-cli train` from end to end, on a tiny model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import yaml

pytest.importorskip("accelerate", reason="needs irc-cli[train]")

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from irc_cli.app import app
from stages.tables.artifacts import ADVANTAGES, TURNS
from stages.tables.table_file import read_table, write_table
from tests.conftest import Cli
from tests.learning import (
    NO,
    YES,
    Played,
    metrics,
    played,
    rows_of,
    tokens_of,
    write_rows,
    write_tokens,
)

FAST = ("--lr", "1e-2", "--epochs", "4", "--batch-size", "8")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return played(tmp_path_factory.mktemp("played"))


@pytest.fixture
def copied(files: Played, tmp_path: Path) -> Played:
    """The same files, to be broken."""
    folder = tmp_path / "copied"
    shutil.copytree(Path(files.rollouts).parent, folder)
    return Played(*(str(folder / Path(path).name) for path in files))


@pytest.fixture
def talks(tmp_path: Path) -> tuple[str, str]:
    """Conversations to learn from, and one that is held out."""

    def write(name: str, answers: list[str]) -> str:
        lines = [
            {
                "messages": [
                    {"role": "user", "content": "hello"},
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": "no"},
                    {"role": "assistant", "content": "yes"},
                ]
            }
            for answer in answers
        ]
        (tmp_path / name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        return str(tmp_path / name)

    return write("sft.jsonl", ["cat", "cat cat"] * 4), write("dev.jsonl", ["no", "yes cat"])


def said(folder: str, files: Played, token: int) -> float:
    """Mean log-probability of the first token of the episodes that begin with it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for row in tokens_of(files):
        if row["turn"] == 0 and row["token_ids"][0] == token:
            with torch.no_grad():
                logits = model(torch.tensor([row["prompt_ids"]])).logits[0, -1]
            found.append(float(torch.log_softmax(logits, -1)[token]))
    return sum(found) / len(found)


def test_what_was_rewarded_becomes_likelier(run: Cli, files: Played) -> None:
    ended = run(*files.args, "-o", "out", *FAST)
    assert (ended.code, ended.out) == (0, b"")
    assert ended.err == (
        "16 sequences, 180 tokens to learn; 4 groups; 0 dropped groups; 0 retokenised episodes\n"
        "wrote out\n"
    )
    assert said("out", files, YES) > said(files.model, files, YES) + 0.2
    assert said("out", files, NO) < said(files.model, files, NO) - 0.2


def test_what_a_run_writes(run: Cli, files: Played) -> None:
    ended = run(*files.args, "-o", "out", *FAST, "--json", "--kl", "0.1", "--save-every", "3")
    assert (ended.code, ended.err.splitlines()[1:]) == (0, [])
    document = ended.json()
    lines = metrics(Path("out"))
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert document == {
        "out": "out",
        "examples": 16,
        "groups": 4,
        "dropped_groups": 0,
        "retokenised_episodes": 0,
        "last_step": lines[-1],
        "notes": {},
    }
    assert lines[0].keys() == {
        *("step", "loss", "lr", "grad_norm", "effective_step", "tokens_per_s", "memory_gb"),
        *("entropy", "ratio", "policy_kl", "reference_kl", "tis"),
        *("clip_low_share", "clip_high_share"),
        *("advantage_rms", "gradient_mass", "wrong_sign_share"),
    }
    assert lines[0]["ratio"] == pytest.approx(1) and lines[0]["reference_kl"] == pytest.approx(0)
    assert lines[-1]["ratio"] != pytest.approx(1) and lines[-1]["reference_kl"] > 0
    assert lines[0]["gradient_mass"].keys() == {"gold_write", "error"}
    assert lines[0]["wrong_sign_share"] == {"gold_write": 0.0, "error": 0.0}
    made = orjson.loads(Path("out/trainer/train.json").read_bytes())
    assert made["settings"]["train"]["lr"] == 1e-2
    weights = str(Path(files.model) / "model.safetensors")
    paths = [files.rollouts, files.turns, files.calibration, weights]
    assert [one["path"] for one in made["inputs"]] == paths
    assert made["result"] == document
    assert any(Path("out/tensorboard").iterdir())
    assert [path.name for path in sorted(Path("out/checkpoints").iterdir())] == [
        "step-000003",
        "step-000006",
    ]
    left = {path.name for path in Path("out").iterdir()}
    assert not [name for name in left if name.startswith(".")] and "policy" not in left


def test_the_policy_is_a_model_of_transformers(run: Cli, files: Played) -> None:
    assert run(*files.args, "-o", "out", *FAST).code == 0
    before = orjson.loads((Path(files.model) / "config.json").read_bytes())
    after = orjson.loads(Path("out/config.json").read_bytes())
    assert after == before | {"use_cache": True}
    old, new = (load_file(Path(at) / "model.safetensors") for at in (files.model, "out"))
    assert old.keys() == new.keys()
    assert run(*files.args[:2], "out", *files.args[3:], "-o", "next", "--off-policy").code == 0


def test_rollouts_of_a_model_are_learnt_as_they_were_sampled(run: Cli, copied: Played) -> None:
    """From sampling to weights: the trainer's logprobs are the engine's, at its temperature."""
    sampled = ("--model", copied.model, "--max-tasks", "2", "--group-size", "3")
    limits = ("--max-turns", "2", "--max-tokens", "12", "--temperature", "0.8", "--quiet")
    policy = ("--env", "airline-mini", "--policy", "transformers")
    assert run("rollout", *policy, *sampled, *limits, "-o", "r.jsonl").code == 0
    assert run("score", "r.jsonl", "-o", "turns.parquet", "--quiet").code == 0
    alike = ("train", "--model", copied.model, "--rollouts", "r.jsonl", "--turns", "t.parquet")
    turns = read_table(TURNS, "turns.parquet")
    won = pl.col("trial").cast(pl.Float64) == 0
    turns = turns.with_columns(outcome=won.cast(pl.Float64), success=won)
    write_table(TURNS, turns, "t.parquet", {}, force=True)
    ended = run(*alike, "-o", "out", "--advantage", "grpo", "--epochs", "2", "--lr", "1e-9")
    assert ended.code == 0
    for line in metrics(Path("out")):
        assert line["tis"] == pytest.approx(1, abs=1e-4)
        assert line["ratio"] == pytest.approx(1, abs=1e-4)
    assert "2 groups; 0 dropped groups" in ended.err
    other = run(*alike, "-o", "again", "--old-logprobs", "engine", "--lr", "1e-9")
    assert other.code == 0
    assert metrics(Path("again"))[0]["ratio"] == pytest.approx(1, abs=1e-4)
    wrong = run(*alike[:2], "out", *alike[3:], "-o", "third")
    assert wrong.code == 2
    assert wrong.err == (
        "error: r.jsonl: was played by other weights than those of 'out'; "
        "give --model the policy that played it, or pass --off-policy\n"
    )


def test_rewards_of_the_turns_count_without_a_calibration(run: Cli, files: Played) -> None:
    turns = read_table(TURNS, files.turns).with_columns(
        reward=pl.when(pl.col("tier") == "gold_write").then(-1.0).otherwise(1.0),
        outcome=pl.lit(1.0),
    )
    write_table(TURNS, turns, "bad.parquet", {}, force=True)
    plain = ("train", "--model", files.model, "--rollouts", files.rollouts)
    assert run(*plain, "--turns", "bad.parquet", "-o", "out", *FAST).code == 0
    assert said("out", files, YES) < said(files.model, files, YES) - 0.2


def test_advantages_of_a_file_are_what_is_learnt(run: Cli, copied: Played) -> None:
    beside = ("-o", str(Path(copied.turns).with_name("again.yaml")), "--keep-rewards", "--quiet")
    assert run("calibrate", copied.turns, *beside).code == 0
    path = str(Path(copied.turns).with_name("advantages.parquet"))
    table = read_table(ADVANTAGES, path)
    played_by = ("--model", copied.model, "--rollouts", copied.rollouts)
    plain = ("train", *played_by, "--turns", copied.turns, *FAST)
    assert run(*plain, "-o", "made").code == 0
    assert run(*plain, "-o", "read", "--advantages", path).code == 0
    losses = [[line["loss"] for line in metrics(Path(name))] for name in ("made", "read")]
    assert losses[0] == losses[1]
    write_table(ADVANTAGES, table.with_columns(-pl.col("advantage")), path, {}, force=True)
    assert run(*plain, "-o", "turned", "--advantages", path).code == 0
    assert said("turned", copied, YES) < said(copied.model, copied, YES) - 0.2
    write_table(ADVANTAGES, table.filter(pl.col("turn") == 0), path, {}, force=True)
    lacking = run(*plain, "-o", "lacking", "--advantages", path)
    assert lacking.code == 2 and not Path("lacking").exists()
    assert f"error: {path}: no advantage of turn 1 of episode " in lacking.err
    alone = run("train", "--model", copied.model, "--sft", "x", "--advantages", path, "-o", "o")
    assert alone.err == "error: --advantages: needs --rollouts; leave it out\n"


def test_only_turns_of_valued_tiers_count(run: Cli, copied: Played) -> None:
    values = {"rewards": {"gold_write": 1.0, "error": 0.0}, "tiers": []}
    Path(copied.calibration).write_text(yaml.safe_dump(values))
    grpo = (*copied.args, "--advantage", "grpo", *FAST)
    assert run(*grpo, "-o", "all").code == 0
    assert run(*grpo, "-o", "focused", "--only-valued").code == 0
    assert [line["gradient_mass"]["error"] > 0 for line in metrics(Path("all"))] == [True] * 8
    assert [line["gradient_mass"] for line in metrics(Path("focused"))] == [
        {"gold_write": 1.0, "error": 0.0}
    ] * len(metrics(Path("focused")))
    assert metrics(Path("focused"))[0]["grad_norm"] != metrics(Path("all"))[0]["grad_norm"]
    Path(copied.calibration).write_text(yaml.safe_dump({"rewards": {"error": 0.0}, "tiers": []}))
    nothing = run(*grpo, "-o", "none", "--only-valued")
    assert (nothing.code, nothing.err.splitlines()[-1]) == (
        2,
        "error: --only-valued: no tier is worth anything; leave it out",
    )
    without = run(*grpo[:7], "-o", "none", "--only-valued")
    assert "--only-valued: needs --calibration" in without.err


def test_dropped_groups_are_counted(run: Cli, files: Played) -> None:
    same = pl.col("group_id") == "g1"
    turns = read_table(TURNS, files.turns).with_columns(
        outcome=pl.when(same).then(0.0).otherwise("outcome"),
        tier=pl.when(same).then(pl.lit("error")).otherwise("tier"),
    )
    write_table(TURNS, turns, "t.parquet", {}, force=True)
    args = [arg if arg != files.turns else "t.parquet" for arg in files.args]
    ended = run(*args, "-o", "out", "--json")
    assert (ended.json()["groups"], ended.json()["dropped_groups"]) == (4, 1)
    assert ended.json()["examples"] == 12


def test_messages_are_learnt(run: Cli, files: Played, talks: tuple[str, str]) -> None:
    learn = ("train", "--model", files.model, "--sft", talks[0], *FAST)
    ended = run(*learn, "-o", "out", "--save-every", "1", "--dev", talks[1], "--keep", "1")
    assert ended.err == ("8 sequences, 40 tokens to learn; 8 conversations\nwrote out\n"), ended.err
    lines = metrics(Path("out"))
    assert lines[0]["loss"] == pytest.approx(math.log(365), rel=0.05)
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    assert "advantage_rms" not in lines[0] and "ratio" not in lines[0]
    assert all("dev_loss" in line for line in lines)


def test_the_best_on_the_dev_set_is_kept_and_is_the_policy(
    run: Cli, files: Played, talks: tuple[str, str]
) -> None:
    learn = ("train", "--model", files.model, "--sft", talks[0], "--batch-size", "2")
    hot = ("--lr", "3e-2", "--epochs", "3", "--save-every", "2", "--keep", "2")
    assert run(*learn, *hot, "-o", "out", "--dev", talks[1]).code == 0
    found = {line["step"]: line["dev_loss"] for line in metrics(Path("out")) if "dev_loss" in line}
    assert list(found) == [2, 4, 6, 8, 10, 12]
    best = min(found, key=lambda step: found[step])
    assert best < 8  # else the test shows nothing
    kept = sorted(int(path.name[5:]) for path in Path("out/checkpoints").iterdir())
    assert kept == [best, 8, 10]
    policy = load_file("out/model.safetensors")
    for name, weights in load_file(f"out/checkpoints/step-{best:06d}/model.safetensors").items():
        assert torch.equal(policy[name], weights)
    assert run(*learn, *hot, "-o", "plain").code == 0
    assert not torch.equal(load_file("plain/model.safetensors")[name], weights)


def test_the_optimizer_may_go_on(run: Cli, files: Played) -> None:
    def moments(folder: str) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = load_file(f"{folder}/trainer/optimizer.safetensors")
        return found

    more = ("--batch-size", "4", "--lr", "1e-3")
    assert run(*files.args, "-o", "one", *more).code == 0
    again = (*files.args[:2], "one", *files.args[3:], "--off-policy", *more)
    assert run(*again, "-o", "fresh").code == 0
    assert run(*again, "-o", "kept", "--keep-optimizer").code == 0
    name = "model.layers.0.mlp.up_proj.weight"
    assert [moments(at)[f"{name}/step"].item() for at in ("one", "fresh", "kept")] == [4, 4, 8]
    # A step of 0 changes the moments only: m' = 0.9 m + 0.1 g.
    still = (*files.args[:2], "one", *files.args[3:], "--off-policy", "--lr", "0", "--batch-size")
    assert run(*still, "16", "-o", "a", "--keep-optimizer").code == 0
    assert run(*still, "16", "-o", "b").code == 0
    m, before, plain = (moments(at)[f"{name}/exp_avg"] for at in ("a", "one", "b"))
    assert torch.allclose(m, 0.9 * before + plain, atol=1e-7)


@pytest.fixture
def other_precision() -> Iterator[None]:
    AcceleratorState._reset_state(True)  # it refuses two precisions in a process
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("other_precision")
def test_bf16_and_checkpointing_come_close(run: Cli, files: Played) -> None:
    AcceleratorState._reset_state(True)
    assert run(*files.args, "-o", "low", *FAST, "--bf16", "--gradient-checkpointing").code == 0
    AcceleratorState._reset_state(True)
    assert run(*files.args, "-o", "high", *FAST).code == 0
    low, high = metrics(Path("low")), metrics(Path("high"))
    assert low[0]["grad_norm"] == pytest.approx(high[0]["grad_norm"], rel=0.05)
    assert low[0]["grad_norm"] != high[0]["grad_norm"]
    assert load_file("low/model.safetensors")["model.norm.weight"].dtype == torch.float32


def test_gradient_checkpointing_changes_nothing(run: Cli, files: Played) -> None:
    assert run(*files.args, "-o", "low", *FAST, "--gradient-checkpointing").code == 0
    assert run(*files.args, "-o", "high", *FAST).code == 0
    for name, low in load_file("low/model.safetensors").items():
        assert torch.allclose(low, load_file("high/model.safetensors")[name], atol=1e-6)


# What is broken in a copy of the files, further options, and the line that tells it.
def nan_weights(files: Played) -> None:
    path = Path(files.model) / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = math.nan
    save_file(weights, path, {"format": "pt"})


def missing_weights(files: Played) -> None:
    path = Path(files.model) / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, {"format": "pt"})


def other_shape(files: Played) -> None:
    path = Path(files.model) / "config.json"
    config = orjson.loads(path.read_bytes()) | {"vocab_size": 300}
    path.write_bytes(orjson.dumps(config))


def truncated_weights(files: Played) -> None:
    path = Path(files.model) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(files: Played) -> None:
    (Path(files.model) / "model.safetensors").rename(Path(files.model) / "pytorch_model.bin")


def small_vocabulary(files: Played) -> None:
    path = Path(files.model) / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300].clone()
    save_file(weights, path, {"format": "pt"})
    other_shape(files)


def tokens_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Played], None]:
    """Change the row of turn 1 of episode e5."""

    def broken(files: Played) -> None:
        rows = tokens_of(files)
        [row] = [row for row in rows if (row["episode_id"], row["turn"]) == ("e5", 1)]
        change(row)
        write_tokens(files, rows)

    return broken


def logprob(value: float) -> Callable[[Played], None]:
    return tokens_with(lambda row: row["logprobs"].__setitem__(0, value))


def rows_with(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Played], None]:
    def broken(files: Played) -> None:
        rows = rows_of(files)
        change(rows)
        write_rows(files, rows)

    return broken


def fewer_turns(files: Played) -> None:
    turns = read_table(TURNS, files.turns).filter(pl.col("episode_id") != "e7")
    write_table(TURNS, turns, files.turns, {}, force=True)


def shorter_turns(files: Played) -> None:
    turns = read_table(TURNS, files.turns)
    turns = turns.filter((pl.col("episode_id") != "e7") | (pl.col("turn") < 1))
    write_table(TURNS, turns, files.turns, {}, force=True)


def constant(files: Played) -> None:
    turns = read_table(TURNS, files.turns).with_columns(outcome=1.0, tier=pl.lit("error"))
    write_table(TURNS, turns, files.turns, {}, force=True)


LOGPROB = (
    "{tokens}: turn 1 of episode 'e5' has an invalid logprob; "
    "find out what the engine recorded: want finite and <= 0"
)
BROKEN: dict[str, tuple[Callable[[Played], Any], str, str]] = {
    "NaN weights": (
        nan_weights,
        "--off-policy",
        "{model}: weights 'model.norm.weight' hold NaN or infinity; "
        "take a checkpoint from before it diverged",
    ),
    "missing weights": (
        missing_weights,
        "--off-policy",
        "{model}: its weights lack 'model.norm.weight' of the shape that config.json says; "
        "use a complete checkpoint",
    ),
    "other shape": (
        other_shape,
        "",
        "{model}: its weights lack 'model.embed_tokens.weight' of the shape that config.json says; "
        "use a complete checkpoint",
    ),
    "truncated weights": (
        truncated_weights,
        "--off-policy",
        "{model}: Error while deserializing header: incomplete metadata, file not fully covered; "
        "give a folder that holds a model",
    ),
    "pickle": (
        pickled,
        "--off-policy",
        "{model}: its weights are a pickle, which can run any code when it is read; "
        "convert them to safetensors",
    ),
    "tokenizer too large": (
        small_vocabulary,
        "--off-policy",
        "{model}: the tokenizer has 365 tokens, the model 300; "
        "give the tokenizer that the model was trained with",
    ),
    "no model": (
        lambda files: shutil.rmtree(files.model),
        "--off-policy",
        "{model}: no such folder; give a folder that holds a model, or a name like 'Qwen/Qwen3-4B'",
    ),
    "NaN logprob": (logprob(math.nan), "", LOGPROB),
    "infinite logprob": (logprob(-math.inf), "", LOGPROB),
    "positive logprob": (logprob(0.1), "", LOGPROB),
    "token beyond the vocabulary": (
        tokens_with(lambda row: row["token_ids"].__setitem__(0, 365)),
        "",
        "{rollouts}: episode 'e5': token id 365 is not in the model's vocabulary of 365; "
        "give the model that wrote it",
    ),
    "turn without tokens": (
        tokens_with(lambda row: row.update(turn=2)),
        "",
        "{rollouts}: turn 2 of episode 'e5' was not scored; rerun irc-cli score on these rollouts",
    ),
    "no rollouts": (
        rows_with(list.clear),
        "",
        "{rollouts}: is empty; give a trace file",
    ),
    "only failures of the user": (
        rows_with(lambda rows: [row.update(status="error") for row in rows]),
        "",
        "{rollouts}: no episode that counts: 16 crashed or cut by infrastructure; roll out again",
    ),
    "twice": (
        rows_with(lambda rows: rows.append(rows[2])),
        "",
        "{rollouts}:17: episode 'e2' occurs twice; give each episode once",
    ),
    "several policies": (
        rows_with(lambda rows: rows[2].update(policy="another")),
        "",
        "{rollouts}: was played by several policies: {policy}, another; "
        "give one policy's rollouts, or pass --off-policy",
    ),
    "other rollouts": (
        rows_with(lambda rows: rows[2].pop("sampling")),
        "",
        "{rollouts}:3: not an episode of irc-cli rollout: no 'sampling'; give a rollouts.jsonl",
    ),
    "not recorded": (
        rows_with(lambda rows: [row.update(tokens_recorded=False) for row in rows]),
        "",
        "{rollouts}: 16 of 16 episodes have no recorded tokens; record them, "
        "or pass --allow-retokenised to train on a guess at what was sampled",
    ),
    "fewer turns": (
        fewer_turns,
        "",
        "{turns}: no turns of episode 'e7' (1 lacking); rerun irc-cli score {rollouts}",
    ),
    "shorter turns": (
        shorter_turns,
        "",
        "{rollouts}: turn 1 of episode 'e7' was not scored; rerun irc-cli score on these rollouts",
    ),
    "no variance": (
        constant,
        "",
        "{rollouts}: nothing to learn: no advantage of 4 groups differs from 0; "
        "collect groups with successes and failures",
    ),
    "no optimizer": (
        lambda files: None,
        "--keep-optimizer",
        "{model}/trainer/optimizer.safetensors: no such file; "
        "leave out --keep-optimizer for a policy that irc-cli train did not write",
    ),
    "out is a file": (
        lambda files: None,
        "-o {rollouts}",
        "{rollouts}: is a file; name a folder",
    ),
    "no folder": (
        lambda files: None,
        "-o no/out",
        "no/out: no directory 'no'; create it first",
    ),
    "out is the model": (
        lambda files: Path(files.model, "metrics.jsonl").touch(),
        "-o {model} --force",
        "{model}: holds '{model}', which is read; name another folder",
    ),
    "out is something else": (
        lambda files: None,
        "-o {model} --force",
        "{model}: holds something other than a training run; name another folder",
    ),
    "dual clip": (
        lambda files: None,
        "--dual-clip 1",
        "--dual-clip: 1 is out of range; use a number above 1",
    ),
    "cap": (
        lambda files: None,
        "--tis-cap -1",
        "--tis-cap: -1 is out of range; use a number of at least 0",
    ),
    "rate": (
        lambda files: None,
        "--lr nan",
        "--lr: nan is out of range; use a number of at least 0",
    ),
    "dev": (
        lambda files: None,
        "--dev dev.jsonl",
        "--dev: needs --sft; leave it out",
    ),
    "two modes": (
        lambda files: None,
        "--sft talks.jsonl",
        "irc-cli train: nothing to train on; give --rollouts or --sft",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_input_is_told_in_a_line_and_leaves_nothing(
    run: Cli, copied: Played, name: str
) -> None:
    change, options, line = BROKEN[name]
    policy = rows_of(copied)[0]["policy"]
    change(copied)
    told = copied._asdict() | {
        "tokens": copied.rollouts.replace(".jsonl", ".tokens.parquet"),
        "policy": policy,
    }
    before = sorted(Path.cwd().rglob("*"))
    ended = run(*copied.args, "-o", "out", *options.format(**told).split())
    assert (ended.code, ended.out) == (2, b"")
    lines = ended.err.splitlines()
    assert lines[-1] == f"error: {line.format(**told)}"
    assert not [line for line in lines[:-1] if not line.startswith("16 sequences")]
    assert sorted(Path.cwd().rglob("*")) == before


def test_bad_messages(run: Cli, files: Played) -> None:
    def told(text: str) -> str:
        Path("sft.jsonl").write_text(text)
        ended = run("train", "--model", files.model, "--sft", "sft.jsonl", "-o", "out")
        assert (ended.code, Path("out").exists()) == (2, False)
        return ended.err

    assert told("") == "error: sft.jsonl: is empty; give a trace file\n"
    assert told("\n") == "error: sft.jsonl: no conversation; give one conversation per line\n"
    assert told('{"messages": 1}\n') == (
        "error: sft.jsonl:1: has no list of 'messages'; give one conversation per line\n"
    )
    assert told('{"messages": [{"role": "user", "content": "no"}]}\n') == (
        "error: sft.jsonl: nothing to learn: no message of an assistant; give other messages\n"
    )


def test_a_model_without_a_chat_template_learns_no_messages(
    run: Cli, copied: Played, talks: tuple[str, str]
) -> None:
    (Path(copied.model) / "chat_template.jinja").unlink()
    ended = run("train", "--model", copied.model, "--sft", talks[0], "-o", "out")
    assert ended.err == (
        f"error: {copied.model}: its tokenizer has no chat template, or no token that ends a "
        "message; write a template for talks with tools to 'chat_template.jinja' in the model's "
        "folder\n"
    )
    assert run(*copied.args, "-o", "out").code == 0  # tokens as recorded need none


CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 9"


@pytest.mark.parametrize("error", [RuntimeError(CPU), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize(
    "where", ["train.train", "train.known_logprobs", "training.model.load_model"]
)
def test_out_of_memory_says_what_to_do(
    run: Cli, files: Played, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(f"stages.{where}", fail)
    ended = run(*files.args, "-o", "out", "--quiet")
    assert (ended.code, ended.err) == (
        2,
        "error: irc-cli train: out of memory; lower --pack-tokens, or pass "
        "--gradient-checkpointing, --bf16 or --lora-rank\n",
    )


def test_processes_that_would_train_alone_are_refused(
    run: Cli, files: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a launcher starts them with FSDP on a CPU: accelerate then knows of one process."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = run(*files.args, "-o", "out")
    assert (ended.code, ended.err.splitlines()[-1]) == (
        2,
        "error: accelerate launch: 2 processes were started, which accelerate does not connect; "
        "on a CPU leave FSDP out, and give --cpu",
    )
    assert not Path("out").exists()


def test_other_failures_are_ours(
    files: Played, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("stages.training.model.load_model", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        app([*files.args, "-o", "out"], prog_name="irc-cli")


def test_divergence_keeps_the_batch(run: Cli, files: Played) -> None:
    ended = run(*files.args, "-o", "out", "--quiet", "--lr", "1e30", "--batch-size", "4")
    assert ended.code == 2
    assert ended.err.startswith("error: out: step 2: the loss is ")
    assert ended.err.endswith(
        " and the gradient norm nan; the run stopped before it, "
        "and the batch is in 'out/offending-batch.parquet'; look at the batch, or lower --lr\n"
    )
    batch = pl.read_parquet("out/offending-batch.parquet")
    assert batch.height == 4 and set(batch["episode_id"]) < {f"e{i}" for i in range(16)}
    assert len(metrics(Path("out"))) == 1
    assert not Path("out/model.safetensors").exists()


def test_a_package_of_the_extra_is_missing(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "peft" else found(name))
    assert run("train", "--help").code == 0
    assert run("train", "--model", "m", "--sft", "s", "-o", "out").err == (
        "error: irc-cli train: needs the package 'peft'; pip install 'irc-cli[train]'\n"
    )


def test_a_run_that_exists_is_not_lost(run: Cli, files: Played) -> None:
    assert run(*files.args, "-o", "out", "--quiet").code == 0
    again = run(*files.args, "-o", "out", "--quiet")
    assert (again.code, again.err) == (
        2,
        "error: out: exists already; pass --resume to continue it, or --force to start over\n",
    )
    before = Path("out/trainer/train.json").stat().st_mtime_ns
    done = run(*files.args, "-o", "out", "--resume")
    assert (done.code, done.err) == (0, "out is complete\n")
    told = run(*files.args, "-o", "out", "--resume", "--json").json()
    assert told["last_step"] == metrics(Path("out"))[-1]
    assert Path("out/trainer/train.json").stat().st_mtime_ns == before
    other = run(*files.args, "-o", "out", "--resume", "--lr", "1")
    assert (other.code, other.err) == (
        2,
        "error: out/trainer/train.json: is of a run with other settings; "
        "resume with the same options, or pass --force\n",
    )
    assert run(*files.args, "-o", "out", "--force", "--quiet", "--lr", "1e-3").code == 0
    assert metrics(Path("out"))[0]["lr"] == 1e-3
    assert len(list(Path("out/tensorboard").iterdir())) == 1


def test_help(run: Cli) -> None:
    shown = run("train", "--help")
    assert shown.code == 0
    assert b"Train a policy on its own rollouts, or fine-tune it on conversations." in shown.out
    assert b"Example: irc-cli train --model MODEL" in shown.out


def test_strict_refuses_what_would_be_left_out(run: Cli, copied: Played) -> None:
    lines = Path(copied.rollouts).read_bytes()
    failed = orjson.loads(lines.splitlines()[0]) | {"episode_id": "x", "status": "error"}
    Path(copied.rollouts).write_bytes(lines + orjson.dumps(failed) + b"\n")
    text = "left out, crashed or cut by infrastructure"
    assert run(*copied.args, "-o", "out", "--strict") == (
        2,
        b"",
        f"error: --strict: '{text}': 1; fix the input, or drop --strict\n",
    )
    assert not Path("out").exists()
    result = run(*copied.args, "-o", "out", "--json")
    assert (result.code, result.json()["notes"]) == (0, {text: 1})
