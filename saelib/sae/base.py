"""`Autoencoder`: what every architecture shares, and what it has to say for itself.

An architecture is a subclass in a file of its own and a line in `architectures`. It must give
`encode`, `bias_names` and `loss_terms`; it may write out its step (`dense_step`, `sparse_step`) and
its sparse encoder (`encode_sparse`), which by default come from autograd and from `encode`.

All architectures decode by x̂ = f W_dec + b_dec and work in *normalised* units, scale · (x − mean);
the normaliser of the site travels with the SAE, and `encode_raw`, `decode_raw` and `reconstruct`
take and give the model's own units. On disk an SAE is a folder of `config.json`,
`weights.safetensors` and `metrics.json`, and `seal.json`, which says what they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from saelib.config import Checked, ConfigError, SAEConfig, TrainConfig
from saelib.files import replaced_file, write_json
from saelib.sae import losses
from saelib.sae.dense import (
    Gradients,
    SparseCodes,
    StepStats,
    codes_at_places,
    in_chunks,
    rows_at_once,
)
from saelib.sae.normalizer import NormalizedModule
from saelib.seal import seal_files, unseal_files

# Norm of each encoder column at the start; its direction is tied to its decoder row's.
ENCODER_INIT_NORM = 0.2
# Rows drawn at once for a shard of a dictionary; a multiple of 16 (see `random_rows`).
DRAWN_ROWS = 4096
ALL_LATENTS = slice(None)
FILES = ("weights.safetensors", "metrics.json", "config.json")  # of a folder


class How(NamedTuple):
    """How a step is computed; the trainer decides it anew for each batch."""

    loss: str  # one of the architecture's `LOSSES`
    sparse: bool = False
    encoder: str = "exact"  # "exact", "screen" or "bfloat16": see `sparse.c.open_entries`
    all_reduce: losses.AllReduce = None  # where ranks hold shards of the latents
    dead: Tensor | None = None  # bool [n_latents]: not fired for `dead_window` tokens
    progress: float = 0.0  # share of the schedule's steps that were taken before this one
    room: Gradients | None = None  # the step's before: memory that this one may write over


@dataclass(frozen=True)
class NoOptions(Checked):
    """The options of an architecture that has none of its own."""


def random_rows(config: SAEConfig, generator: torch.Generator | None, shard: slice) -> Tensor:
    """`torch.randn(n_latents, d_in)[shard]` without allocating the full matrix.

    torch fills a tensor sixteen values at a time and draws a remainder anew. Blocks of a multiple
    of 16 rows therefore continue each other, if the last block takes the rest.
    """
    start, stop, _ = shard.indices(config.n_latents)
    if torch.get_default_device().type == "meta":  # drawing takes long there, and gives nothing
        return torch.empty(stop - start, config.d_in)
    if stop - start == config.n_latents:
        return torch.randn(config.n_latents, config.d_in, generator=generator)
    n_blocks = max(1, config.n_latents // DRAWN_ROWS)
    kept = []
    for first, last in pairwise([*range(0, n_blocks * DRAWN_ROWS, DRAWN_ROWS), config.n_latents]):
        block = torch.randn(last - first, config.d_in, generator=generator)
        kept.append(block[max(start - first, 0) : max(stop - first, 0)].clone())
    return torch.cat(kept)


class Autoencoder(NormalizedModule, ABC):
    """Base of every architecture: decoder, normaliser, files, and the default ways to step.

    `shard` selects the latents it holds where ranks share a dictionary (`sharding.Sharding`);
    `config` describes the whole. Subclasses say:

        LOSSES          the objectives it can be trained with; each is also the name of an arm;
                        empty where it can be measured alone
        KNOB            the setting that governs its sparsity: "lam", or the option that is its L0
        L0_IS_EXACT     whether that option is the L0 of any rows, and not of training batches alone
        Options         a checked dataclass of its own options, kept in `SAEConfig.options`
        has_gate        whether a latent may be open and still not fire
        rowwise         whether a row's loss depends on no other row of its batch, so that a dense
                        step may take rows in chunks
        can_be_sharded  whether ranks can each train a shard of its latents
        STARTS          bias -> the option that says where it starts; the others start at 0
        FLOORS          bias -> what its values below 0, which say the same as 0, become in training
        UNITLESS        the biases that have no unit, so that folding the normaliser leaves them
        UNTRAINED       l1_mode -> why it cannot be trained so; it can be opened and measured
        UNRESAMPLED     why its dead latents cannot be resampled; empty where they can be
    """

    LOSSES: ClassVar[tuple[str, ...]]
    KNOB: ClassVar[str] = "lam"
    L0_IS_EXACT: ClassVar[bool] = False
    Options: ClassVar[type[Checked]] = NoOptions
    has_gate: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True
    can_be_sharded: ClassVar[bool] = False
    STARTS: ClassVar[dict[str, str]] = {}
    FLOORS: ClassVar[dict[str, float]] = {}
    UNITLESS: ClassVar[tuple[str, ...]] = ()
    UNTRAINED: ClassVar[dict[str, str]] = {}
    UNRESAMPLED: ClassVar[str] = ""

    def __init__(
        self,
        config: SAEConfig,
        generator: torch.Generator | None = None,
        shard: slice = ALL_LATENTS,
    ) -> None:
        super().__init__(config.d_in)
        self.config = self.checked(config)
        self.options = self.options_of(self.config)
        directions = random_rows(config, generator, shard)
        if len(directions) < config.n_latents:
            self._check_shared()
        if not directions.is_meta:
            directions = directions / directions.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(directions)
        # Stored latent by latent (strides of a transpose): one latent's encoder is contiguous.
        self.W_enc = nn.Parameter((ENCODER_INIT_NORM * directions).T)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        for name in self.bias_names():
            start = torch.full((len(directions),), self.bias_start(name))
            setattr(self, name, nn.Parameter(start))

    @classmethod
    def options_of(cls, config: SAEConfig) -> Checked:
        """The options of an SAE of that configuration."""
        return cls.Options.from_dict(config.options)

    def _check_shared(self) -> None:
        """Refuse ranks that share the latents, where what one trains depends on the others'."""
        aux_k = getattr(self.options, "aux_k", 0)
        if self.can_be_sharded and not aux_k:
            return
        named = f"arch = {self.config.arch!r}: ranks cannot share its latents"
        if self.can_be_sharded:
            named = f"aux_k = {aux_k}: AuxK compares the dead latents of all ranks, expected 0"
        raise ConfigError(f"{named}; share the batch ('data') or the list of runs ('grid')")

    @classmethod
    def checked(cls, config: SAEConfig) -> SAEConfig:
        """The configuration with all of the architecture's options filled in.

        Raises:
            ConfigError: an option is unknown or has a value that it cannot have.
        """
        return replace(config, options=cls.Options.from_dict(config.options).to_dict())

    # -- what an architecture gives, beside `encode`

    @classmethod
    @abstractmethod
    def bias_names(cls) -> tuple[str, ...]:
        """The per-latent parameters beside W_enc and W_dec, all [n_latents]; the gate's first."""

    @abstractmethod
    def loss_terms(self, x: Tensor, lam: float, how: How) -> losses.LossTerms:
        """The objective's terms per row on normalised x [batch, d_in], differentiable."""

    def gate_open(self, x: Tensor) -> Tensor:
        """Which latents may fire. x: [batch, d_in] normalised -> bool [batch, n_latents]."""
        return self.encode(x) > 0

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, encoder: str = "exact") -> tuple[SparseCodes, Tensor]:
        """Open latents of normalised x, and their codes f [entries], some of which may be 0.

        `encoder` may be "screen" where `sparse.screens` says so; the codes are the same up to
        rounding.
        """
        f = self.encode(x)
        row, col = self.gate_open(x).nonzero(as_tuple=True)
        values = f[row, col]
        return codes_at_places(row, col, values, f.shape), values

    def step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        """Statistics of the batch and the gradients of its mean loss. x: [batch, d_in] normalised.

        A dense step takes rows in chunks, where they can be separated. With `how.all_reduce` the
        SAE holds a shard of the latents: x̂ and the gradient of b_dec are summed over ranks, all
        else concerns the shard's latents alone.
        """
        if how.sparse:
            return self.sparse_step(x, lam, how)
        fitting = rows_at_once(self.config.n_latents, x.device)  # of all ranks: equal chunks
        size = fitting if self.separates_rows(how) else len(x)
        return in_chunks(lambda rows: self.dense_step(rows, lam, how), x, size)

    def separates_rows(self, how: How) -> bool:
        """Whether no row's loss depends on the others' in such a step."""
        return self.rowwise

    def dense_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        """The step on full matrices: here autograd on `loss_terms`."""
        parameters = dict(self.named_parameters())
        with torch.enable_grad():
            terms = self.loss_terms(x, lam, how)
            grads = torch.autograd.grad(
                terms.total.mean(), list(parameters.values()), materialize_grads=True
            )
        with torch.no_grad():
            fires = self.encode(x) > 0
            is_open = self.gate_open(x)
        mse, l1, aux = (term.detach().sum() for term in terms)
        stats = StepStats(mse, l1, aux, fires.sum(), is_open.sum(), fires.any(0), is_open.any(0))
        # in the strides of the parameter, as the optimiser takes them
        oriented = (
            torch.empty_like(p).copy_(g) for p, g in zip(parameters.values(), grads, strict=True)
        )
        return stats, dict(zip(parameters, oriented, strict=True))

    def sparse_step(self, x: Tensor, lam: float, how: How) -> tuple[StepStats, Gradients]:
        """The step on active codes alone, float32; without one of its own, the dense step."""
        return self.step(x, lam, how._replace(sparse=False))

    # -- what all share

    def bias_start(self, name: str) -> float:
        """Where a bias starts, and where a resampled latent's starts again."""
        return float(getattr(self.options, self.STARTS[name])) if name in self.STARTS else 0.0

    def decode(self, f: Tensor) -> Tensor:
        """x̂ in normalised units. [batch, n_latents] -> [batch, d_in]."""
        return losses.decode(f, self.W_dec, self.b_dec)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(f, x_hat) of normalised x; changes no state."""
        f = self.encode(x)
        return f, self.decode(f)

    @torch.no_grad()
    def folded(self) -> Autoencoder:
        """The same SAE in model units, its normaliser folded into the weights.

        With x̂ = x̂ₙ / s + μ: biases b ← b / s (those without a unit stay), b_dec ← b_dec / s + μ,
        weights unchanged. Its codes are f / s of this SAE's, its reconstructions equal.
        """
        plain = type(self)(replace(self.config, normalize="none")).to(self.W_dec)
        plain.load_state_dict(self.state_dict())
        for name in self.bias_names():
            if name not in self.UNITLESS:
                getattr(plain, name).div_(self.scale)
        plain.b_dec.copy_(self.b_dec / self.scale + self.mean)
        plain.set_normalizer_(torch.zeros_like(self.mean), 1.0)
        return plain.requires_grad_(False)

    @torch.no_grad()
    def unit_norm_decoder_(self) -> None:
        """Renormalise decoder rows, where the configuration asks for unit norm."""
        if self.config.l1_mode == "unit_norm":
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def after_step_(self) -> None:
        """What is put right once the optimiser has moved the parameters; here nothing."""

    @torch.no_grad()
    def project_decoder_grad_(self) -> None:
        """Remove the gradient along each unit-norm decoder row (Bricken et al. 2023, appendix)."""
        if self.config.l1_mode == "unit_norm" and self.W_dec.grad is not None:
            along = torch.linalg.vecdot(self.W_dec.grad, self.W_dec)[:, None]
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    def save(
        self,
        folder: Path,
        metrics: dict[str, Any] | None = None,
        state: dict[str, Tensor] | None = None,
        run_id: str = "",
        beside: Sequence[str] = (),
    ) -> None:
        """Write the folder; a folder whose seal, which comes last, lists its files is complete.

        `state` is written in place of the SAE's own tensors, if it is given. `run_id` and further
        files of the folder (`beside`) are sealed with the SAE's.

        Raises:
            ValueError: a tensor is not float32; nothing is written.
        """
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in (state or self.state_dict()).items()
        }
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}; an SAE's folder holds torch.float32")
        unseal_files(folder, FILES)
        with replaced_file(folder / "weights.safetensors") as temporary:
            save_file(tensors, temporary)
        write_json(folder / "metrics.json", metrics or {})
        write_json(folder / "config.json", self.config.to_dict())
        seal_files(folder, (*beside, *FILES), run_id)


def check_training(sae_class: type[Autoencoder], config: SAEConfig, train: TrainConfig) -> None:
    """Refuse what can be opened and measured, but not trained.

    Raises:
        ConfigError: training such an SAE does not do what its settings say.
    """
    reason = sae_class.UNTRAINED.get(config.l1_mode)
    if reason:
        raise ConfigError(
            f"SAEConfig.l1_mode = {config.l1_mode!r}: expected 'unit_norm' to train arch "
            f"{config.arch!r}, {reason}"
        )
    if train.resample_at and sae_class.UNRESAMPLED:
        raise ConfigError(
            f"TrainConfig.resample_at = {list(train.resample_at)}: expected none to train arch "
            f"{config.arch!r}, {sae_class.UNRESAMPLED}"
        )


def check_store(sae: Autoencoder, d_model: int, sites: tuple[int, ...]) -> None:
    """Refuse activations that the SAE does not fit.

    Raises:
        ValueError: another width, or no activations of this SAE's site; names both.
    """
    if d_model != sae.config.d_in:
        raise ValueError(
            f"SAE of width d_in = {sae.config.d_in} does not fit activations of width {d_model}"
        )
    if sae.config.site not in sites:
        raise ValueError(
            f"SAE of site {sae.config.site} does not fit activations of sites {sorted(sites)}"
        )
