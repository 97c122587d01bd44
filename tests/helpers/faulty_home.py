"""A workbook folder with one of every artifact, made by the real stages on a tiny model."""

import os
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers import fuzzed_text
from helpers.published import (
    D_IN,
    N_LATENTS,
    K,
    random_sae,
    weights,
    write_folder,
    write_gemma_scope,
)
from helpers.toy_workbook import write_profile
from helpers.workspaces import (
    RECIPE,
    STREAMING,
    corpus_of,
    open_workspace,
    save_model,
    write_text,
)
from saelib.activations.writer import StoreWriter
from saelib.config import CollectConfig
from saelib.measure import descriptions
from saelib.run.jobs import job_key, jobs_of, write_record
from saelib.run.opening import open_lens
from saelib.run.report import build_report
from saelib.run.seals import seals_of
from saelib.run.trained import Trained
from saelib.run.workspace import Workspace
from saelib.sae.formats import export
from saelib.sae.spec import Spec
from saelib.sae.trainer import Trainer
from saelib.show.explore.notes import NOTES, Note, Notes
from saelib.study.estimate import Estimate
from saelib.study.finding import Finding, record, record_abstract, record_table

PROFILE, LIVE, HALF = "tiny", "live", "half"
NOTEBOOK = "02_x"
SHORT = RECIPE | {"tokens": 1024}
LLAMA_SCOPE = {
    "act_fn": "jumprelu",
    "hook_point_in": "blocks.7.hook_resid_post",
    "hook_point_out": "blocks.7.hook_resid_post",
    "d_model": D_IN,
    "d_sae": N_LATENTS,
    "jump_relu_threshold": 0.9,
    "dataset_average_activation_norm": {"in": 8.0, "out": 8.0},
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "sparsity_include_decoder_norm": True,
    "top_k": K,
}
PARAMETERS = 'profile: str = "tiny"\nlam: float = 0.5  # λ\nsites = [1, "middle"]  # sites\n'


class Killed(BaseException):
    """What stands for a kill in mid-training."""


def specs_of(ws: Trained) -> list[Spec]:
    """An SAE of each architecture; one with resampling and snapshots."""
    resampled = {"resample_at": (0.25,), "dead_window": 256, "snapshots": 2}
    return [
        *(ws.spec("plain", 2, lam=lam, **SHORT) for lam in (0.5, 0.8)),
        ws.spec("full", 2, lam=0.5, **SHORT, **resampled),
        ws.spec("topk", 3, k=4, **SHORT),
    ]


def killed_spec(ws: Trained) -> Spec:
    """The SAE whose training stops half way, with a checkpoint."""
    return ws.spec("full", 1, lam=0.5, resample_at=(0.25,), dead_window=256, **SHORT)


def lens_of(home: Path):
    """The lens on the plain SAE of the profile."""
    return open_lens(PROFILE, site=2, arch="plain", l0=8)


def build(home: Path) -> None:
    """Fill an empty folder; the process keeps it as its workbook's."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["SAELIB_HOME"] = str(home)
    torch.set_num_threads(1)
    save_model(home / "model")
    write_text(home / "pages.jsonl")
    _write_texts(home / "texts")
    _write_formats(home / "formats")
    _train(home)
    _stop_in_collecting(home)
    _look_at_features(home)
    _record(home)
    build_report(PROFILE)


def _train(home: Path) -> None:
    ws = open_workspace(home, PROFILE)
    ws.train(specs_of(ws), NOTEBOOK)
    _stop_in_training(ws)
    live = open_workspace(home, LIVE, STREAMING)
    live.train([live.spec("plain", 2, lam=0.5, **SHORT)], NOTEBOOK)


def _stop_in_training(ws: Workspace) -> None:
    whole = Trainer.step_

    def step_(trainer: Trainer, x: torch.Tensor) -> None:
        if trainer.step == 12:
            raise Killed
        whole(trainer, x)

    Trainer.step_ = step_
    ws.checkpoint_every = 4
    try:
        ws.train([killed_spec(ws)], NOTEBOOK)
    except Killed:
        return
    finally:
        Trainer.step_ = whole
    raise AssertionError("the training was not stopped")


def _stop_in_collecting(home: Path) -> None:
    whole = StoreWriter.write_shard

    def write_shard(writer: StoreWriter, shard: int, x: dict) -> None:
        if shard == 2:
            raise Killed
        whole(writer, shard, x)

    StoreWriter.write_shard = write_shard
    try:
        open_workspace(home, HALF)
    except Killed:
        return
    finally:
        StoreWriter.write_shard = whole
    raise AssertionError("the collection was not stopped")


def collect_half(home: Path):
    """Go on with the collection that was stopped."""
    ws = Workspace(HALF, "cpu")
    config = CollectConfig(shard_tokens=1024)
    sites = [1, "middle", -2]
    return ws.collect(str(home / "model"), corpus_of(home), sites, config, dtype="float32")


def _look_at_features(home: Path) -> None:
    """An index, matches in other SAEs, an ablation, notes and descriptions."""
    lens = lens_of(home)
    latent = int(lens.index.table["n_fired"].idxmax())
    lens.matches()
    lens.ablation(latent, 2)
    folder = home / "data" / PROFILE
    Notes(folder / NOTES).save(lens.checksum, lens.name, latent, Note("a word", ("dates",)))
    _describe(lens, latent)


def _describe(lens, latent: int) -> None:
    line = {"sae": lens.checksum, "corpus_id": lens.index.manifest["corpus_id"]}
    line |= {"latent": latent, "model": "m", "description": "words", "score": 0.75, "n_scored": 8}
    descriptions._keep(descriptions._path(lens), line)


def _record(home: Path) -> None:
    """What a notebook leaves: its executed copy, verdicts, tables, a figure, a sealed record."""
    sources = home / "notebooks"
    (sources / "profiles").mkdir(parents=True)
    cells = [
        new_markdown_cell("# Claim\n\n$x$ holds."),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell("print(lam)"),
    ]
    nbformat.write(new_notebook(cells=cells), sources / f"{NOTEBOOK}.ipynb")
    write_profile(home, "common:\n  lam: 0.25\nnotebooks:\n  02_x:\n    sites: [1, 2]\n", PROFILE)
    _write_figure(home / "data" / PROFILE / "figures" / "02_curve.png")
    estimate = Estimate(np.linspace(0.4, 0.6, 21))
    record(
        PROFILE,
        NOTEBOOK,
        [
            Finding(
                "F1",
                "It trains.",
                "An interval over 0.",
                "supported",
                {"share": estimate},
                "It trains by 0.5.",
                "Claim",
                f"data/{PROFILE}/figures/02_curve.png",
            )
        ],
    )
    record_abstract(PROFILE, NOTEBOOK, "One half trains.")
    record_table(PROFILE, "02_curve", pd.DataFrame({"site": [1, 2], "share": [0.25, 0.5]}))
    cells[-1]["outputs"] = [new_output("stream", name="stdout", text="0.25\n")]
    executed = home / "data" / PROFILE / "notebooks" / f"{NOTEBOOK}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), executed)
    (job,) = jobs_of(PROFILE)
    write_record(job, job_key(job), seals_of(job))


def _write_figure(path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([0, 1])
    figure.savefig(path)
    plt.close(figure)


def _write_texts(folder: Path) -> None:
    """A text of every form, and a Parquet file."""
    for number, (source, path, content, pack) in enumerate(fuzzed_text.forms().values()):
        name = path.partition(":")[0]
        target = folder / f"{source}_{number}" / name
        target.parent.mkdir(parents=True)
        target.write_bytes(pack(content))
    table = pd.DataFrame({"id": ["a", "b"], "text": ["one two", "three"]})
    (folder / "parquet").mkdir()
    table.to_parquet(folder / "parquet" / "a.parquet")


def _write_formats(folder: Path) -> None:
    """A folder of each layout of other libraries, and one of this package's."""
    sae = random_sae("sae")
    sae.save(folder / "saelib")
    export(sae, "saelens", folder / "saelens", model="m")
    export(sae, "dictionary_learning", folder / "dictionary_learning", model="m")
    w = weights()
    scope = folder / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k"
    write_gemma_scope(scope / "average_l0_82", w)
    encoder = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"]}
    tensors = encoder | {"W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    config = {"activation": "topk", "k": K, "d_in": D_IN, "num_latents": 0, "transcode": False}
    write_folder(folder / "layers.5", "cfg.json", config, "sae.safetensors", tensors)
    tensors = encoder | {"decoder.weight": w["W_dec"].T, "decoder.bias": w["b_dec"]}
    config = LLAMA_SCOPE | {"norm_activation": "dataset-wise"}
    weights_name = "checkpoints/final.safetensors"
    write_folder(folder / "L7R-8x", "hyperparams.json", config, weights_name, tensors)
