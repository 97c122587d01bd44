"""A workspace over a tiny model and text on disk, and SAEs that take seconds."""

import json
import os
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.models import llama
from saelib.config import CollectConfig, CorpusConfig, EvalConfig, StreamConfig
from saelib.run.workspace import Workspace
from saelib.sae.trainer import Trainer

WORDS = 60
RECIPE = {"n_latents": 64, "tokens": 4096, "batch_size": 64, "lr": 3e-3, "log_every": 4}
STREAMING = StreamConfig(buffer_tokens=1024, sample_contexts=60)


def save_model(folder):
    """A tiny Llama and a tokenizer of one token a word."""
    vocabulary = {"[UNK]": 0} | {f"w{i}": i + 1 for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    llama(vocabulary=len(vocabulary)).save_pretrained(folder)


def write_text(path):
    """60 pages of 400 words, a few of which make up most."""
    rng = np.random.default_rng(0)
    pages = [{"text": " ".join(f"w{i}" for i in rng.zipf(1.6, 400) % WORDS)} for _ in range(60)]
    path.write_text("".join(json.dumps(page) + "\n" for page in pages))


def corpus_of(home):
    """The text of `write_text` in contexts of 16 tokens."""
    path = str(home / "pages.jsonl")
    return CorpusConfig(source="jsonl", path=path, ctx_len=16, contexts_per_page=6)


def write_inputs(home):
    """The model and the text that `open_workspace` collects from."""
    save_model(home / "model")
    write_text(home / "pages.jsonl")


def open_workspace(home, profile="tiny", streaming=None):
    """A profile whose store is collected, or whose live rows are sampled, at sites 1, 2 and 3."""
    os.environ["SAELIB_HOME"] = str(home)
    workspace = Workspace(profile, "cpu", EvalConfig(ce_tokens=256))
    workspace.collect(
        str(home / "model"),
        corpus_of(home),
        [1, "middle", -2],
        CollectConfig(shard_tokens=1024),
        dtype="float32",
        streaming=streaming,
    )
    return workspace


def workspace_alone(home):
    """Yields `open_workspace`; the process keeps its own workbook folder afterwards."""
    write_inputs(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELIB_HOME", str(home))
        yield open_workspace(home)


def trained_profile(home, specs_of):
    """The profile of `open_workspace` with trained SAEs; the process keeps its own workbook folder.

    specs_of: from the workspace to what is trained.
    """
    write_inputs(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELIB_HOME", str(home))
        workspace = open_workspace(home)
        return workspace.train(specs_of(workspace), "02_train_sae")


def specs_over_sites(workspace):
    """SAEs that differ in site, architecture, tokens and seed."""
    arms = [
        ("plain", 1, {}),
        ("full", 1, {}),
        ("plain", 3, {"tokens_mask": "all"}),
        ("plain", 2, {"seed": 1}),
    ]
    return [workspace.spec(arm, site, lam=0.5, **RECIPE, **more) for arm, site, more in arms]


def halt_training(at):
    """From now on a training of this process stands at step `at` until the process is killed."""
    whole = Trainer.step_

    def step_(trainer, x):
        if trainer.step == at:
            time.sleep(600)
        whole(trainer, x)

    Trainer.step_ = step_
