"""`SAE` and `GatedSAE`: build, encode, decode, save, load.

    SAE        f = ReLU((x − b_dec) W_enc + b_enc)
    GatedSAE   π = (x − b_dec) W_enc + b_gate
               f = 1[π > 0] ⊙ ReLU(((x − b_dec) W_enc) ⊙ exp(r_mag) + b_mag)
    both       x̂ = f W_dec + b_dec

Both work in *normalised* units, scale · (x − mean); the normaliser of the site travels with the SAE, and `encode_raw`,
`decode_raw` and `reconstruct` take and give the model's own units. On disk an SAE is a folder of `config.json`,
`weights.safetensors` and `metrics.json`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saelib.config import SAEConfig
from saelib.files import read_json, write_json
from saelib.sae import losses

ENCODER_INIT_NORM = (
    0.2  # norm of each encoder column at the start, tied to its decoder row's direction
)
DRAWN_ROWS = 4096  # drawn at once for a share of a dictionary; a multiple of 16
EVERY = slice(None)


def random_rows(config: SAEConfig, generator: torch.Generator | None, own: slice) -> Tensor:
    """Rows `own` of normal values [n_latents, d_in], as one draw of all has them, without room for all of them.

    torch fills a tensor sixteen values at a time and what is left over anew, so that blocks of a multiple of 16 rows
    continue each other, where the last one takes the rest.
    """
    start, stop, _ = own.indices(config.n_latents)
    if stop - start == config.n_latents:
        return torch.randn(config.n_latents, config.d_in, generator=generator)
    kept, blocks = [], max(1, config.n_latents // DRAWN_ROWS)
    for first, last in pairwise([*range(0, blocks * DRAWN_ROWS, DRAWN_ROWS), config.n_latents]):
        block = torch.randn(last - first, config.d_in, generator=generator)
        kept.append(block[max(start - first, 0) : max(stop - first, 0)].clone())
    return torch.cat(kept)


class _Autoencoder(nn.Module, ABC):
    """What both architectures share: decoder, normaliser, files.

    `own` are the latents it holds where ranks share a dictionary (`sharding.Split`); `config` is of the whole.
    """

    def __init__(
        self, config: SAEConfig, generator: torch.Generator | None = None, own: slice = EVERY
    ) -> None:
        super().__init__()
        self.config = config
        directions = random_rows(config, generator, own)
        directions = directions / directions.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(directions)
        # Stored latent by latent (strides of a transpose), so that one latent's encoder vector is contiguous.
        self.W_enc = nn.Parameter((ENCODER_INIT_NORM * directions).T)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("mean", torch.zeros(config.d_in))
        self.register_buffer("scale", torch.ones(()))

    @abstractmethod
    def bias_names(self) -> tuple[str, ...]:
        """The per-latent parameters beside W_enc and W_dec, all [n_latents]."""

    @abstractmethod
    def gate_open(self, x: Tensor) -> Tensor:
        """Which latents may fire. x: [batch, d_in] normalised -> bool [batch, n_latents]."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Codes f of normalised x. [batch, d_in] -> [batch, n_latents]."""

    @abstractmethod
    def loss_terms(
        self, x: Tensor, lam: float, loss: str, reduce: losses.Reduce = None
    ) -> losses.Terms:
        """The objective's terms on normalised x, per row (see `losses`)."""

    def decode(self, f: Tensor) -> Tensor:
        """x̂ in normalised units. [batch, n_latents] -> [batch, d_in]."""
        return losses.decode(f, self.W_dec, self.b_dec)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(f, x_hat) of normalised x; changes no state."""
        f = self.encode(x)
        return f, self.decode(f)

    def normalize(self, x: Tensor) -> Tensor:
        """Model units -> normalised units. [batch, d_in]."""
        if x.shape[-1] != self.config.d_in:
            raise ValueError(
                f"SAE of width d_in = {self.config.d_in} was given activations of width {x.shape[-1]}"
            )
        return (x - self.mean) * self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        """Normalised units -> model units. [batch, d_in]."""
        return x / self.scale + self.mean

    def encode_raw(self, x: Tensor) -> Tensor:
        """Codes of activations in model units; the codes themselves stay in normalised units."""
        return self.encode(self.normalize(x))

    def decode_raw(self, f: Tensor) -> Tensor:
        """x̂ in model units from codes in normalised units."""
        return self.denormalize(self.decode(f))

    def reconstruct(self, x: Tensor) -> Tensor:
        """x̂ of x, both in model units. [batch, d_in] -> [batch, d_in]."""
        return self.decode_raw(self.encode_raw(x))

    @torch.no_grad()
    def set_normalizer_(self, mean: Tensor, scale: float) -> None:
        """Set mean [d_in] and scale of the site's normaliser."""
        self.mean.copy_(mean)
        self.scale.fill_(scale)

    @torch.no_grad()
    def unit_norm_decoder_(self) -> None:
        """Renormalise decoder rows, where the configuration asks for unit norm."""
        if self.config.l1_mode == "unit_norm":
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def project_decoder_grad_(self) -> None:
        """Remove the gradient's component along each unit-norm decoder row (Bricken et al. 2023, appendix)."""
        if self.config.l1_mode == "unit_norm" and self.W_dec.grad is not None:
            along = torch.linalg.vecdot(self.W_dec.grad, self.W_dec)[:, None]
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    def check_store(self, d_model: int, sites: tuple[int, ...]) -> None:
        """Refuse activations of another width or without this SAE's site, naming both."""
        if d_model != self.config.d_in:
            raise ValueError(
                f"SAE of width d_in = {self.config.d_in} does not fit activations of width {d_model}"
            )
        if self.config.site not in sites:
            raise ValueError(
                f"SAE of site {self.config.site} does not fit activations of sites {sorted(sites)}"
            )

    def save(
        self,
        folder: Path,
        metrics: dict[str, Any] | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> None:
        """Write the folder; `config.json` comes last, so that a folder with it is complete. `state`: if not its own."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "weights.safetensors.tmp"
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in (state or self.state_dict()).items()},
            temporary,
        )
        os.replace(temporary, folder / "weights.safetensors")
        write_json(folder / "metrics.json", metrics or {})
        write_json(folder / "config.json", self.config.to_dict())


class SAE(_Autoencoder):
    """f = ReLU((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec."""

    def __init__(
        self, config: SAEConfig, generator: torch.Generator | None = None, own: slice = EVERY
    ) -> None:
        super().__init__(config, generator, own)
        self.b_enc = nn.Parameter(torch.zeros(len(self.W_dec)))

    def bias_names(self) -> tuple[str, ...]:
        return ("b_enc",)

    def encode(self, x: Tensor) -> Tensor:
        return losses.sae_codes(x, self.W_enc, self.b_enc, self.b_dec)

    def gate_open(self, x: Tensor) -> Tensor:
        return self.encode(x) > 0

    def loss_terms(
        self, x: Tensor, lam: float, loss: str = "plain", reduce: losses.Reduce = None
    ) -> losses.Terms:
        return losses.sae_loss(x, dict(self.named_parameters()), lam, self.config.l1_mode, reduce)


class GatedSAE(_Autoencoder):
    """f = 1[π > 0] ⊙ ReLU(((x − b_dec) W_enc) ⊙ exp(r_mag) + b_mag), π = (x − b_dec) W_enc + b_gate."""

    def __init__(
        self, config: SAEConfig, generator: torch.Generator | None = None, own: slice = EVERY
    ) -> None:
        super().__init__(config, generator, own)
        for name in self.bias_names():
            setattr(self, name, nn.Parameter(torch.zeros(len(self.W_dec))))

    def bias_names(self) -> tuple[str, ...]:
        return ("b_gate", "b_mag", "r_mag")

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return losses.gated_codes(x, self.W_enc, self.b_gate, self.r_mag, self.b_mag, self.b_dec)

    def encode(self, x: Tensor) -> Tensor:
        return self._codes(x)[0]

    def gate_open(self, x: Tensor) -> Tensor:
        return self._codes(x)[1] > 0

    def loss_terms(
        self, x: Tensor, lam: float, loss: str = "full", reduce: losses.Reduce = None
    ) -> losses.Terms:
        return losses.gated_loss(
            x, dict(self.named_parameters()), lam, self.config.l1_mode, loss, reduce
        )


def build_sae(
    config: SAEConfig, generator: torch.Generator | None = None, own: slice = EVERY
) -> SAE | GatedSAE:
    """A fresh SAE of `config.arch`, initialised from `generator`; of its latents those in `own`."""
    return {"sae": SAE, "gated": GatedSAE}[config.arch](config, generator, own)


def load_sae(folder: Path) -> SAE | GatedSAE:
    """Load an SAE folder. Missing or foreign files raise an error that names the file."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: not a (finished) SAE folder")
    sae = build_sae(SAEConfig.from_dict(read_json(path)))
    weights = path.with_name("weights.safetensors")
    try:
        sae.load_state_dict(load_file(weights))
    except SafetensorError as error:
        raise ValueError(f"{weights}: damaged ({error})") from error
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {path}: {error}") from error
    return sae.requires_grad_(False)
