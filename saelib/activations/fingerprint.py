"""What a language model is, whole: a profile keeps it, to notice that its files have changed since.

`LM.model_id` samples the weights, so that it is one for float32 and bfloat16. A change between the
samples, of the config (as RoPE's base) or of the tokenizer leaves it as it is, and shows here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelib.activations.lm import LM
from saelib.config import ConfigError, stable_hash

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a value
# Of a config: where it was read from, and how.
PASSING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation")

log = logging.getLogger(__name__)


def fingerprint(lm: LM) -> dict[str, str]:
    """Hashes of a model's weights, config and tokenizer; the weights' is of one dtype."""
    config = {k: v for k, v in lm.model.config.to_diff_dict().items() if k not in PASSING}
    return {
        "weights": weights_sum(lm.model),
        "config": stable_hash(repr(sorted(config.items()))),
        "tokenizer": stable_hash(_tokenizer(lm.tokenizer)),
    }


def require_same_model(kept: Mapping[str, str] | None, lm: LM, path: Path) -> None:
    """Compare a model with the fingerprint that a file keeps; None: of an earlier version, none.

    Another config or tokenizer is told: a later version of their library may read them otherwise.

    Raises:
        ConfigError: the weights are others.
    """
    if kept is None:
        return
    present = fingerprint(lm)
    if present["weights"] != kept.get("weights"):
        raise ConfigError(
            f"model {lm.name!r}: its weights are not those that {path} says were collected with; "
            f"put these back, or remove the folder {path.parent}"
        )
    for part in ("config", "tokenizer"):
        if present[part] != kept.get(part):
            log.warning(
                f"model {lm.name!r}: its {part} is not the one that {path} says was collected "
                "with; what is computed now may not fit what lies there"
            )


@torch.no_grad()
def weights_sum(model: nn.Module) -> str:
    """A hash of the sums of all tensors' words: any one flipped bit changes it.

    A sum runs at the memory's speed, where a hash of all bytes would take longer than the loading.
    """
    sums = [(name, _sum(tensor)) for name, tensor in sorted(model.state_dict().items())]
    return stable_hash(sums)


def _sum(tensor: Tensor) -> int:
    flat = tensor.detach().contiguous().flatten()
    return int(flat.view(WORDS[flat.element_size()]).sum(dtype=torch.int64))


def _tokenizer(tokenizer: Any) -> str:
    """A digest of all that a tokenizer does; empty without one."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    special = repr(sorted(map(str, tokenizer.special_tokens_map.items())))
    return hashlib.sha256(f"{rules}{special}".encode()).hexdigest()
