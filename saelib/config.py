"""Frozen, type-checked configurations, one dataclass per thing, and the profiles that fill them.

A configuration is checked when it is made: a wrong type, an unknown key or a value out of range
raises `ConfigError` with the field, the value and what is accepted. Its hash names the artifact it
leads to.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

# types as messages name them
IN_WORDS = {
    float: "a finite number",
    float | int: "a finite number",
    float | None: "a finite number, or null",
    int: "a whole number",
    str: "a string",
    bool: "true or false",
    dict: "a mapping",
}
# A token is a sink when its norm exceeds this many medians of its site (DESIGN: token classes).
SINK_FACTOR = 5.0
NAME_CHARS = 4_096  # of the longest name: no path that Linux opens is longer
HUB_CHARS = 96  # of the longest hub id, owner included
LARGEST = 2**63 - 1  # of whole numbers: what has 64 bits
SHOWN = 200  # characters of a value in a message


class ConfigError(ValueError):
    """A configuration field holds a wrong value.

    The message names the field, the value and what is accepted.
    """


def shown(value: Any, most: int = SHOWN) -> str:
    """A value as a message has it: the beginning of one that is long, and its length."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return f"({type(value).__name__} of a number too long to be shown)"
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _matches(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint) and type(value) in {type(a) for a in get_args(hint)}
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_matches(v, get_args(hint)[0]) for v in value)
    if hint == float | None:
        return value is None or _matches(value, float)
    if hint in (float, float | int):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max  # of no NaN either
    # True is no whole number.
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)


def _accepted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_accepted(get_args(hint)[0])}"
    return IN_WORDS[hint]


def refuse_unknown(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Raise `ConfigError` for the first name that is unknown.

    `what` says which kind of name it is, and where it stands.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} {shown(name)}; accepted: {', '.join(known) or 'none'}")


@cache
def _hints(kind: type[Checked]) -> dict[str, Any]:
    """The types of a configuration's fields; asked for at each construction, and costly to find."""
    return get_type_hints(kind)


class Checked:
    """Base of every configuration: type checks at construction, (de)serialisation, stable hash."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, f.name, value)
            self._require(_matches(value, hints[f.name]), f.name, _accepted(hints[f.name]))
            if isinstance(value, str):
                within = len(value) <= NAME_CHARS
                self._require(within, f.name, f"at most {NAME_CHARS:,} characters")
            if hints[f.name] is int:
                self._require(abs(value) <= LARGEST, f.name, "a whole number of 64 bits at most")
            if hints[f.name] in (float, float | None) and value is not None:
                object.__setattr__(self, f.name, float(value))
        self.check()

    def check(self) -> None:
        """Ranges and cross-field rules; overridden."""

    def _require(self, ok: bool, name: str, accepted: str) -> None:
        value = getattr(self, name)
        if not ok:
            raise ConfigError(
                f"{type(self).__name__}.{name} = {shown(value)} ({type(value).__name__}): expected "
                f"{accepted}"
            )

    def _at_least(self, least: int, accepted: str, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) >= least, name, accepted)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Build from a mapping.

        An unknown key raises `ConfigError` that names it and the accepted keys.
        """
        refuse_unknown(values, [f.name for f in fields(cls)], f"{cls.__name__}: unknown key")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def to_dict(self, omit_defaults: bool = False) -> dict[str, Any]:
        """The fields as JSON has them, or only those that differ from their default.

        `from_dict` takes both back.
        """
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if not omit_defaults:
            return values
        return {f.name: values[f.name] for f in fields(self) if getattr(self, f.name) != f.default}


def stable_hash(*parts: Any, length: int = 12) -> str:
    """Hex digest of JSON-able parts, the same on every machine and Python version."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=lambda c: c.to_dict())
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True)
class CorpusConfig(Checked):
    """Which documents, and how they become contexts."""

    source: Literal[
        "embedded", "enwik8", "mediawiki", "fever", "dataset", "jsonl", "parquet", "text"
    ] = "embedded"
    # File, folder, zip or hub id; of "text" also path:separator. Unused by "embedded" and "enwik8".
    path: str = ""
    text_column: str = "text"
    id_column: str = ""  # column with the page id; the row's number where empty
    n_docs: int = 0  # so many documents, drawn by `seed` and page id (`text.pages`); 0 takes all
    detokenize: bool = True  # turn treebank tokens back into text ("fever")
    ctx_len: int = 128  # tokens in a context, BOS included
    min_ctx_len: int = 0  # shortest context kept, from a page's tail; 0 keeps whole contexts only
    contexts_per_page: int = 20  # 0 takes all
    bos: Literal["auto", "always", "never"] = "auto"  # "auto" does what the model's tokenizer does
    # What a malformed row does, and a page or line beyond the bounds of `text.lines`, `text.apart`.
    on_bad_line: Literal["raise", "skip"] = "raise"
    seed: int = 0  # which pages (`n_docs`) and which contexts of a long page are taken

    def check(self) -> None:
        self._require(self.ctx_len >= 2, "ctx_len", "at least 2 tokens")
        self._require(
            0 <= self.min_ctx_len <= self.ctx_len, "min_ctx_len", f"0 to ctx_len = {self.ctx_len}"
        )
        self._at_least(0, "0 (all) or more", "n_docs", "contexts_per_page")
        self._at_least(0, "0 or more", "seed")
        named = bool(self.path) or self.source in ("embedded", "enwik8")
        self._require(named, "path", f"a path or hub id for {self.source!r}")


@dataclass(frozen=True)
class CollectConfig(Checked):
    """How activations are collected and stored; the sites are given beside it."""

    batch_tokens: int = 4096  # tokens a forward
    shard_tokens: int = 16384  # rows a shard, rounded down to whole contexts (at least one)
    # Of the stored rows. "auto": the model's; "int8": one scale per row, half bfloat16's disk.
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    # Mix lengths in a batch: faster on short pages, but not bit-equal to the unpadded rows.
    pad: bool = False

    def check(self) -> None:
        self._at_least(1, "at least 1", "batch_tokens", "shard_tokens")


@dataclass(frozen=True)
class StreamConfig(Checked):
    """Training rows straight from the language model: the shuffle buffer, and the rows stored."""

    # Tokens of the shuffle buffer; at most two buffers are in memory, for all sites.
    buffer_tokens: int = 131_072
    # Training contexts that are stored too: for normaliser, sinks' threshold and spectra.
    sample_contexts: int = 1024
    # Contexts of validation pages, and of test pages, that are stored; 0: all.
    held_out_contexts: int = 0
    # Which contexts are stored, and the order of the rows, which is one for all SAEs.
    seed: int = 0

    def check(self) -> None:
        self._at_least(1, "at least 1", "buffer_tokens", "sample_contexts")
        self._at_least(0, "0 (all) or more", "held_out_contexts")
        self._at_least(0, "0 or more", "seed")


@dataclass(frozen=True)
class SAEConfig(Checked):
    """What a trained SAE *is*: enough to build it empty and to refuse the wrong activations."""

    arch: str = "sae"  # a name in the table of architectures, `sae.architectures`
    d_in: int = 576
    n_latents: int = 2304
    site: int = 0
    l1_mode: Literal["unit_norm", "norm_weighted"] = "unit_norm"
    normalize: Literal["center_scale", "center", "scale", "none"] = "center_scale"
    options: dict = field(default_factory=dict, hash=False)  # the architecture's own

    def check(self) -> None:
        self._at_least(1, "at least 1", "d_in", "n_latents")
        self._at_least(0, "a resolved site, 0 or more", "site")

    def to_dict(self, omit_defaults: bool = False) -> dict[str, Any]:
        """As `Checked.to_dict`; without `options` where there are none."""
        values = super().to_dict(omit_defaults)
        return values if self.options else {k: v for k, v in values.items() if k != "options"}


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How an SAE is trained. Fractions are of the whole run."""

    loss: str = "plain"  # one of the architecture's `LOSSES`
    lam: float = 1.0  # λ, the L1 coefficient, in normalised units
    lam_warmup: float = 0.05  # λ rises linearly from 0
    tokens: int = 204_800  # budget; the run has tokens // batch_size steps
    batch_size: int = 512
    lr: float = 1e-3
    schedule: Literal["constant", "linear", "cosine", "cosine_with_restarts"] = "constant"
    warmup: float = 0.05  # learning rate rises linearly from 0
    n_cycles: int = 1  # restarts of "cosine_with_restarts"
    # Stop after this share of the schedule: < 1 shows what stopping in mid-cycle costs.
    stop_at: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip: float = 0.0  # global norm; 0 is off
    b_dec_init: Literal["zero", "mean", "geometric_median"] = "zero"
    tokens_mask: Literal["ordinary", "all"] = "ordinary"
    resample_at: tuple[float, ...] = ()  # after these shares of the run; empty is off
    dead_window: int = 50_000  # tokens without firing that make a latent dead
    resample_rows: int = 16_384  # rows whose loss is computed to draw from
    seed: int = 0  # initialisation and resampling draws
    data_seed: int = -1  # order of the rows; -1: the same as `seed`
    # "auto": sparse where few codes are active (CPU, C compiler).
    step: Literal["auto", "dense", "sparse"] = "auto"
    # "bfloat16": the encoder's product is rounded, so codes are not exact.
    encoder: Literal["exact", "bfloat16"] = "exact"
    log_every: int = 10  # steps between rows of the history
    snapshots: int = 0  # gate/firing snapshots kept over training, evenly spaced; 0 is off

    def check(self) -> None:
        self._require(self.lam >= 0, "lam", "λ ≥ 0")
        self._require(self.lr > 0, "lr", "a learning rate > 0")
        self._at_least(1, "at least 1", "batch_size", "n_cycles", "resample_rows", "log_every")
        self._require(
            self.tokens >= self.batch_size, "tokens", f"at least one batch of {self.batch_size}"
        )
        self._at_least(1, "at least 1 token", "dead_window")
        self._at_least(0, "0 or more", "snapshots", "seed")
        self._at_least(-1, "-1 (the same as seed), 0 or more", "data_seed")
        self._require(self.grad_clip >= 0, "grad_clip", "0 (off) or a norm")
        self._require(0 < self.stop_at <= 1, "stop_at", "a share in (0, 1]")
        for name in ("warmup", "lam_warmup"):
            self._require(0 <= getattr(self, name) <= 1, name, "a share in [0, 1]")
        for name in ("beta1", "beta2"):
            self._require(0 <= getattr(self, name) < 1, name, "a value in [0, 1)")
        rising = all(a < b for a, b in pairwise((0, *self.resample_at, 1)))
        self._require(rising, "resample_at", "rising shares in (0, 1)")
        marks = (
            0,
            *self.resample_steps,
            self.steps,
        )  # outside them it would not happen, or not be trained after
        apart = not self.resample_at or all(a < b for a, b in pairwise(marks))
        self._require(
            apart,
            "resample_at",
            f"shares at different steps, all between 0 and the last, {self.steps}",
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule."""
        return self.tokens // self.batch_size

    @property
    def steps(self) -> int:
        """Steps actually taken: fewer than `total_steps` where `stop_at` < 1."""
        return max(1, round(self.total_steps * self.stop_at))

    @property
    def resample_steps(self) -> tuple[int, ...]:
        """Steps after which dead latents are resampled."""
        return tuple(round(share * self.total_steps) for share in self.resample_at)


@dataclass(frozen=True)
class EvalConfig(Checked):
    """How a trained SAE is measured on held-out pages."""

    # Test tokens whose next-token loss is measured, the same for every SAE of a store; 0: none.
    ce_tokens: int = 4096
    batch_tokens: int = 1024  # tokens a forward
    seed: int = 0  # which test contexts

    def check(self) -> None:
        self._at_least(0, "0 (no loss is measured) or more", "ce_tokens")
        self._at_least(0, "0 or more", "seed")
        self._at_least(1, "at least 1", "batch_tokens")
