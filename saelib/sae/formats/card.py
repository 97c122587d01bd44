"""The model card of an SAE on the hub, from its folder's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelib.files import read_json
from saelib.sae.origin import digest, origin
from saelib.seal import checked, is_listed

# Columns of an SAE's row, in words: over ordinary tokens, then by token class.
METRICS = {
    "fvu": "FVU, ordinary tokens",
    "fvu_sink": "FVU, first and sink tokens",
    "fvu_all": "FVU, all tokens",
    "l0": "L0, ordinary tokens",
    "l0_all": "L0, all tokens",
    "loss_recovered": "loss recovered (zero ablation), ordinary tokens",
    "delta_ce": "ΔCE, nats, ordinary tokens",
    "kl": "KL, nats, ordinary tokens",
    "dead_fraction": "dead latents, share",
}
RECIPE = (
    *("loss", "lam", "tokens", "batch_size", "lr", "schedule", "warmup", "lam_warmup"),
    *("grad_clip", "tokens_mask", "resample_at", "seed"),
)
USE = """```python
from saelib.sae.formats.hub import from_hub

sae = from_hub("{repo_id}")
x_hat = sae.reconstruct(x)  # x: [tokens, {d_in}], the residual stream at site {site}, model units
```"""


def card(folder: Path, repo_id: str, licence: str) -> str:
    """README.md of an SAE folder: model and site, text, recipe, metrics by token class, licence.

    Raises:
        ValueError: a file of the folder is damaged; names it.
        FileNotFoundError: it holds no (finished) SAE.
    """
    config = read_json(checked(folder / "config.json"))
    metrics = _optional(folder / "metrics.json")
    train = _optional(folder / "train.json").get("train", {})
    source = origin(folder)
    site = f"{source.site} (0 is the embedding; ℓ the output of block ℓ − 1)"
    facts = {
        "language model": source.model or "not recorded",
        "site": site,
        "text": source.text or "not recorded",
        "architecture": f"{config['arch']}, {config['n_latents']} latents, width {config['d_in']}",
        "normaliser": f"{config['normalize']}, in the weights file",
        "SHA-256 of the weights": digest(folder),
        "licence": licence or "none stated by the author",
    }
    recipe = {name: train[name] for name in RECIPE if name in train}
    values = _measured(metrics.get("row") or {})
    use = USE.format(repo_id=repo_id, d_in=config["d_in"], site=source.site)
    sections = [
        f"{_head(licence)}\n# {repo_id.partition('/')[2] or repo_id}",
        "A sparse autoencoder on a language model's residual stream.",
        _table("about", facts),
        "## Use\n\n" + use,
        "## Measured on held-out pages\n\n" + (_table("metric", values) or "Not measured."),
        "## Recipe\n\n" + (_table("setting", recipe) or "Not recorded."),
    ]
    return "\n\n".join(sections) + "\n"


def _optional(file: Path) -> dict[str, Any]:
    return read_json(checked(file)) if file.exists() and is_listed(file) else {}


def _head(licence: str) -> str:
    """The card's YAML, which the hub reads."""
    lines = ["---", "library_name: saelib", "tags:", "- sparse-autoencoder"]
    lines += [f"license: {licence}"] if licence else []
    return "\n".join([*lines, "---"])


def _measured(row: dict[str, Any]) -> dict[str, str]:
    """The metrics that the row has."""
    return {
        words: f"{row[name]:.4g}"
        for name, words in METRICS.items()
        if isinstance(row.get(name), int | float)
    }


def _table(title: str, values: dict[str, Any]) -> str:
    """A table of two columns; empty where there are no values."""
    if not values:
        return ""
    lines = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join([f"| {title} | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """A value in a cell: one line, without what would end the cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
