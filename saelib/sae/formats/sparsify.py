"""EleutherAI sparsify's folder: cfg.json and sae.safetensors, a TopK SAE.

encoder.weight and W_dec are [n_latents, d_in]; the encoder takes x − b_dec. The folder bears the
module's name: `layers.5` is the output of block 5. Conventions read from eai-sparsify 1.3.3.
"""

from __future__ import annotations

import re
from pathlib import Path

from saelib.sae.formats.parts import (
    Parts,
    read_config,
    read_weights,
    refuse_option,
    refuse_others,
    under_our_names,
    whole_number,
)

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
PLAIN = {"activation": "topk", "transcode": False, "skip_connection": False}


def read(folder: Path) -> Parts:
    """An SAE of sparsify, in model units.

    Raises:
        FormatError: the folder is damaged, or holds a transcoder or another activation.
    """
    file = folder / WEIGHTS
    config = read_config(folder / CONFIG)
    for name, value in PLAIN.items():
        refuse_option(folder / CONFIG, name, config.get(name, value), (value,))
    k = whole_number(folder / CONFIG, "k", config.get("k"))
    raw = read_weights(file)
    refuse_others(raw, NAMES.values(), file)
    tensors = under_our_names(raw, NAMES, file, transposed=("W_enc",))
    return Parts("topk", tensors, _site(folder.absolute().name), {"k": k}, file)


def _site(hookpoint: str) -> int | None:
    """The site of a module's name; sparsify hooks outputs."""
    if hookpoint.endswith("embed_tokens"):
        return 0
    block = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)", hookpoint)
    return int(block[1]) + 1 if block else None
