"""The frozen language model: read its residual stream at several sites, or continue from another.

Sites: site l < n is the input of block l, `hidden_states[l]` of `transformers`; site n is the last
block's output before the final norm, so that final_norm(site n) is `hidden_states[n]`. "middle" is
n // 2; -1 is n, -2 is n - 1.

Nothing here knows a model by name. The blocks are the one `nn.ModuleList` of length
`num_hidden_layers`, and they always run inside the model's own forward, which makes their masks,
position embeddings and per-layer choices. `capture` watches that forward and ends it at the deepest
site. `continue_from` runs it with stand-ins where the earlier blocks were, which hand the replaced
stream on. Both therefore equal the model bit for bit.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saelib.activations.hub import ModelLoadError, short_name
from saelib.activations.loading import load_pretrained
from saelib.hardware import choose_device, choose_dtype

HASH_SAMPLE = 1024  # values per tensor that enter the content hash
STATES = ("cache_params", "state")  # what a forward calls the state of a recurrent model
# A whole number or "middle". `LM.site` checks it, and answers a wrong one with the valid range.
SiteName = Any


class _Stop(Exception):
    """Ends a forward pass once all that was wanted has been seen."""


class LM:
    """A causal language model in evaluation mode, without gradients or cache, on unpadded contexts.

    Needs a decoder with attention whose blocks pass one stream [batch, time, d_model] on, as Llama,
    Mistral, Qwen2, Gemma, GPT-2, GPT-J and GPT-NeoX do; others raise `ValueError` here. One block
    sees one token now, to learn what it hands back. The model itself is frozen in place. Not for
    use by two threads at once.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, name: str = "") -> None:
        refuse_recurrent(model)
        config = model.config.get_text_config()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self.n_layers: int = config.num_hidden_layers
        self.d_model: int = config.hidden_size
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self.blocks = find_blocks(model, self.n_layers)
        self._n_handed = self._probe()

    @classmethod
    def load(cls, name: str, dtype: str = "auto", device: str = "auto", gguf_file: str = "") -> LM:
        """Load a hub id, a local folder or a `.gguf` file, or a `gguf_file` of the former.

        A folder is read without network, and its code is never run. `device` "auto" is CUDA where
        there is one; `dtype` "auto" is bfloat16 on CUDA and on CPUs that compute it natively, else
        float32. Raises `ModelLoadError`, which says what is missing, damaged or not possible.
        """
        target = choose_device(device)
        model, tokenizer = load_pretrained(name, choose_dtype(dtype, target), gguf_file)
        try:
            return cls(model.to(target), tokenizer, short_name(name, gguf_file))
        except ValueError as error:
            raise ModelLoadError(f"model {name!r} cannot be used: {error}") from error

    @property
    def device(self) -> torch.device:
        """Where token ids go and streams come from."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of the forward, and the streams' dtype."""
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: token ids lie below."""
        return self.model.get_input_embeddings().weight.shape[0]

    @cached_property
    def model_id(self) -> str:
        """Readable name and content hash, `name@0123456789ab`; computed once, at the first call."""
        return f"{self.name}@{content_hash(self.model)}"

    def site(self, name: SiteName) -> int:
        """Resolve a site name to 0..n_layers; `ValueError` names the site and the valid range."""
        return resolve_site(name, self.n_layers)

    def capture(self, input_ids: Tensor, sites: Sequence[SiteName]) -> dict[int, Tensor]:
        """Residual streams [batch, time, d_model] of contexts `input_ids` [batch, time], by site.

        One forward that ends at the deepest site: no later block runs, nor final norm or head. The
        streams are copies, in the model's dtype and on its device. Raises `ValueError` for no
        site, a site the model does not have, and token ids it cannot take.
        """
        wanted = sorted({self.site(site) for site in sites})
        if not wanted:
            raise ValueError("capture: no sites were asked for")
        ids = self._checked_ids(input_ids)
        streams: dict[int, Tensor] = {}

        def see(site: int, stream: Tensor) -> None:
            # an ordinary tensor, which may be trained on and written into
            with torch.inference_mode(False):
                streams[site] = stream.clone()
            if site == wanted[-1]:
                raise _Stop

        with ExitStack() as hooks, suppress(_Stop):
            for site in wanted:
                hooks.enter_context(self._watch(site, partial(see, site)))
            self._forward(ids)
        return streams

    def continue_from(self, site: SiteName, stream: Tensor, input_ids: Tensor) -> Tensor:
        """Logits [batch, time, vocab] when `stream` [batch, time, d_model] stands at `site`.

        `input_ids` [batch, time] are the contexts that the stream belongs to. Only the blocks from
        `site` on, the final norm and the head run (and the embedding, whose result is dropped). The
        stream is converted to the model's dtype and device. The logits are an inference tensor:
        read only. Raises `ValueError` as `capture` does, and for a stream of another shape.
        """
        start = self.site(site)
        ids = self._checked_ids(input_ids)
        expected = (*ids.shape, self.d_model)
        if tuple(stream.shape) != expected:
            raise ValueError(
                f"stream at site {site}: shape {tuple(stream.shape)}, expected {expected}"
            )
        with self._entered_at(start, stream.detach().to(self.device, self.dtype)):
            return self._forward(ids)

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> Tensor:
        # No attention mask: contexts are unpadded, and without one the causal kernel can be used.
        return self.model(input_ids=ids, use_cache=False, return_dict=True).logits

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"input_ids: {ids.dtype} {tuple(ids.shape)}, expected whole numbers [batch, time]"
            )
        if self.max_length and ids.shape[1] > self.max_length:
            raise ValueError(
                f"input_ids: contexts of {ids.shape[1]} tokens, {self.name} takes {self.max_length}"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"input_ids: token id {wrong}, {self.name} knows 0 to {self.vocab_size - 1}"
            )
        return ids.to(self.device, torch.long)

    def _watch(self, site: int, see: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `see(stream)` when a forward reaches the site."""
        if site == self.n_layers:
            return self.blocks[-1].register_forward_hook(lambda _, __, out: see(_stream_of(out)))
        return self.blocks[site].register_forward_pre_hook(
            lambda _, args, named: see(args[0] if args else named["hidden_states"]),
            with_kwargs=True,
        )

    @contextmanager
    def _entered_at(self, site: int, stream: Tensor) -> Iterator[None]:
        """While open, the stream stands at the site and the blocks before it do not run."""
        replaced = list(self.blocks[:site])
        # beside the stream a block may hand on what a forward like ours does not use
        given = (stream, *[None] * (self._n_handed - 1)) if self._n_handed else stream
        with _feeding(self.blocks[0], stream) if site == 0 else nullcontext():
            try:
                for i, block in enumerate(replaced):
                    self.blocks[i] = _StandIn(block, given)
                yield
            finally:
                for i, block in enumerate(replaced):
                    self.blocks[i] = block

    def _probe(self) -> int:
        """Length of the tuple in which blocks hand the stream back, 0 where they hand it back bare.

        Raises `ValueError` when what they hand back is no stream [batch, time, d_model].
        """
        seen: list[Any] = []

        def see(_: nn.Module, __: tuple, out: Any) -> None:
            seen.append(out)
            raise _Stop

        with self.blocks[0].register_forward_hook(see), suppress(_Stop):
            try:
                self._forward(torch.zeros(1, 1, dtype=torch.long, device=self.device))
            except (torch.OutOfMemoryError, _Stop):
                raise
            except Exception as error:  # of any kind: it is the model's own code
                raise ValueError(
                    f"{type(self.model).__name__} fails on a single token ({error!r}): "
                    "do the sizes in its config fit each other?"
                ) from error
        if not seen or tuple(getattr(_stream_of(seen[0]), "shape", ())) != (1, 1, self.d_model):
            raise ValueError(
                f"{self.name}: its blocks do not hand on one stream [batch, time, {self.d_model}]"
            )
        return len(seen[0]) if isinstance(seen[0], tuple | list) else 0


class _StandIn(nn.Module):
    """In a block's place: hands on a given stream, and has the block's attributes.

    The model's own loop over its blocks may read those.
    """

    def __init__(self, block: nn.Module, given: Tensor | tuple[Tensor | None, ...]) -> None:
        super().__init__()
        # past nn.Module, which would make the block a submodule
        self.__dict__.update(block=block, given=given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *_: Any, **__: Any) -> Tensor | tuple[Tensor | None, ...]:
        return self.given


def _feeding(block: nn.Module, stream: Tensor) -> RemovableHandle:
    """Until removed, the block's input is `stream`."""

    def put(_: nn.Module, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((stream, *args[1:]), named) if args else (args, {**named, "hidden_states": stream})

    return block.register_forward_pre_hook(put, with_kwargs=True)


def _stream_of(out: Any) -> Any:
    return out[0] if isinstance(out, tuple | list) and out else out


def resolve_site(name: SiteName, n_layers: int) -> int:
    """A site name to 0..n_layers: "middle" is n_layers // 2, -1 is n_layers.

    Raises `ValueError` naming the site and the valid range.
    """
    if name == "middle":
        return n_layers // 2
    whole = isinstance(name, Integral) and not isinstance(name, bool)
    if not whole or not -(n_layers + 1) <= name <= n_layers:
        valid = f"0 to {n_layers}, -1 to {-(n_layers + 1)} counted from the end, or 'middle'"
        raise ValueError(f"site {name!r}: expected {valid} (the model has {n_layers} blocks)")
    return int(name) if name >= 0 else n_layers + 1 + int(name)


def refuse_recurrent(model: nn.Module) -> None:
    """Raise `ValueError` for a model without attention, as Mamba, RWKV and xLSTM.

    Such a model keeps a state between tokens, which its forward takes in the place of keys and
    values. One that has attention beside it, as Jamba and Qwen3-Next, is no such model.
    """
    taken = inspect.signature(model.forward).parameters
    if "past_key_values" not in taken and not taken.keys().isdisjoint(STATES):
        raise ValueError(
            f"{type(model).__name__} (model_type {model.config.model_type!r}) is a state-space or "
            "recurrent model: a state carries the text from token to token and nothing attends, so "
            "that sinks and first tokens are not what they are here; "
            "expected a decoder with attention"
        )


def find_blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The outermost `nn.ModuleList` of that length.

    Raises `ValueError` when there is none, or more than one.
    """
    lists = {k: v for k, v in model.named_modules() if isinstance(v, nn.ModuleList)}
    candidates = {k: v for k, v in lists.items() if len(v) == n_layers}
    depth = min((name.count(".") for name in candidates), default=0)
    outer = [name for name in candidates if name.count(".") == depth]
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one list of {n_layers} blocks, "
            f"found {outer or 'none'}"
        )
    return candidates[outer[0]]


def content_hash(model: nn.Module) -> str:
    """Twelve hex digits over the names, shapes and sampled values of all weights.

    Each tensor gives up to HASH_SAMPLE evenly spread values, rounded to bfloat16, so that float32
    and bfloat16 loads of one model agree (a float16 load may not). Retraining or merging an adapter
    changes the hash; an edit that misses all sampled values or stays below bfloat16's resolution
    does not, nor does the config (as RoPE's base).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(_sampled(tensor.detach().flatten()).numpy().tobytes())
    return digest.hexdigest()[:12]


def _sampled(flat: Tensor) -> Tensor:
    count = min(flat.numel(), HASH_SAMPLE)
    # Exact end to end spacing rather than a stride: a stride can be a multiple of the row length
    # and see one column alone.
    index = torch.arange(count) * (flat.numel() - 1) // max(count - 1, 1)
    return flat[index.to(flat.device)].to(torch.bfloat16).float().cpu()
