"""The frozen language model: read its residual stream at several sites, or continue from a replaced one.

Sites: site l < n is the input of block l, `hidden_states[l]` of `transformers`; site n is the last block's output
before the final norm, so that final_norm(site n) is `hidden_states[n]`. "middle" is n // 2; -1 is n, -2 is n - 1.

Nothing here knows a model by name. The blocks are the one `nn.ModuleList` of length `num_hidden_layers`, and they
always run inside the model's own forward, which makes their masks, position embeddings and per-layer choices.
`capture` watches that forward and ends it at the deepest site; `continue_from` runs it with stand-ins, which hand
the replaced stream on, where the earlier blocks were. Both therefore equal the model bit for bit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelib.hardware import choose_device, choose_dtype

HASH_SAMPLE = 1024  # values a tensor that enter the content hash
SiteName = Any  # a whole number or "middle"; `LM.site` checks it, so that a wrong one is answered with the valid range
HUB_ID = re.compile(r"[\w.-]*\w(/\w[\w.-]*)?")  # "name" or "owner/name"; anything else is a path


class ModelLoadError(OSError):
    """A model cannot be loaded; the message says what is missing and how a local folder helps."""


class _Stop(Exception):
    """Ends a forward pass once all that was wanted has been seen."""


class LM:
    """A causal language model in evaluation mode, without gradients or cache, on unpadded contexts.

    Needs a decoder whose blocks pass one stream [batch, time, d_model] on, as Llama, Mistral, Qwen2, Gemma, GPT-2
    and GPT-NeoX do; others raise ValueError here. One block sees one token now, to learn what it hands back.
    The model itself is frozen in place. Not for use by two threads at once.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, name: str = "") -> None:
        config = model.config.get_text_config()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self.n_layers: int = config.num_hidden_layers
        self.d_model: int = config.hidden_size
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self.blocks = find_blocks(model, self.n_layers)
        self._in_tuples = self._probe()

    @classmethod
    def load(cls, name: str, dtype: str = "auto", device: str = "auto", gguf_file: str = "") -> LM:
        """Load a hub id, a local folder or a `.gguf` file (also: folder or hub id with `gguf_file`).

        A folder is read without network. `device` "auto" is CUDA where there is one; `dtype` "auto" is bfloat16 on
        CUDA and on CPUs that compute it natively, else float32. `ModelLoadError` says what is missing.
        """
        where = choose_device(device)
        what = choose_dtype(dtype, where)
        source, options, hub_error = _locate(name, gguf_file)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model, report = AutoModelForCausalLM.from_pretrained(
                source, dtype=what, attn_implementation="sdpa", output_loading_info=True, **options
            )
        except (OSError, ValueError, SafetensorError) as error:
            cause = hub_error if hub_error and isinstance(error, OSError) else error
            raise ModelLoadError(_explain(name, cause)) from cause
        if report["missing_keys"]:  # transformers would go on with random values in their place
            raise ModelLoadError(
                f"model {name!r} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}"
            )
        return cls(model.to(where), tokenizer, _short_name(name, gguf_file))

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
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
        """Resolve a site name (see the module) to 0..n_layers; ValueError names the site and the valid range."""
        return resolve_site(name, self.n_layers)

    def capture(self, input_ids: Tensor, sites: Sequence[SiteName]) -> dict[int, Tensor]:
        """Residual streams [batch, time, d_model] of contexts `input_ids` [batch, time], by resolved site.

        One forward that ends at the deepest site: no later block runs, nor final norm or head. The streams are
        copies of their own, in the model's dtype and on its device.
        """
        wanted = sorted({self.site(site) for site in sites})
        if not wanted:
            raise ValueError("capture: no sites were asked for")
        ids, found = self._checked_ids(input_ids), {}

        def see(site: int, stream: Tensor) -> None:
            with torch.inference_mode(
                False
            ):  # an ordinary tensor: may be trained on and written into
                found[site] = stream.clone()
            if site == wanted[-1]:
                raise _Stop

        with ExitStack() as hooks, suppress(_Stop):
            for site in wanted:
                hooks.enter_context(self._watch(site, partial(see, site)))
            self._forward(ids)
        return found

    def continue_from(self, site: SiteName, stream: Tensor, input_ids: Tensor) -> Tensor:
        """Logits [batch, time, vocab] when `stream` [batch, time, d_model] stands at `site` of contexts `input_ids`.

        Only the blocks from `site` on, the final norm and the head run (and the embedding, whose result is dropped).
        The stream is converted to the model's dtype and device. The logits are an inference tensor: read only.
        """
        start, ids = self.site(site), self._checked_ids(input_ids)
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
        with _feeding(self.blocks[0], stream) if site == 0 else nullcontext():
            try:
                for i, block in enumerate(replaced):
                    self.blocks[i] = _StandIn(block, (stream,) if self._in_tuples else stream)
                yield
            finally:
                for i, block in enumerate(replaced):
                    self.blocks[i] = block

    def _probe(self) -> bool:
        """Whether blocks hand the stream back in a tuple; ValueError when it is no stream [batch, time, d_model]."""
        seen: list[Any] = []

        def see(_: nn.Module, __: tuple, out: Any) -> None:
            seen.append(out)
            raise _Stop

        with self.blocks[0].register_forward_hook(see), suppress(_Stop):
            self._forward(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        if not seen or tuple(getattr(_stream_of(seen[0]), "shape", ())) != (1, 1, self.d_model):
            raise ValueError(
                f"{self.name}: its blocks do not hand on one stream [batch, time, {self.d_model}]"
            )
        return isinstance(seen[0], tuple)


class _StandIn(nn.Module):
    """In a block's place: hands on a given stream, and answers for the block's attributes, which the loop may read."""

    def __init__(self, block: nn.Module, given: Tensor | tuple[Tensor]) -> None:
        super().__init__()
        self.__dict__.update(
            block=block, given=given
        )  # past nn.Module, which would make the block a submodule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return self.given


def _feeding(block: nn.Module, stream: Tensor) -> RemovableHandle:
    """Until removed, the block's input is `stream`."""

    def put(_: nn.Module, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((stream, *args[1:]), named) if args else (args, {**named, "hidden_states": stream})

    return block.register_forward_pre_hook(put, with_kwargs=True)


def _stream_of(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def resolve_site(name: SiteName, n_layers: int) -> int:
    """A site name to 0..n_layers: "middle" is n_layers // 2, −1 is n_layers; ValueError names site and valid range."""
    if name == "middle":
        return n_layers // 2
    whole = isinstance(name, Integral) and not isinstance(name, bool)
    if not whole or not -(n_layers + 1) <= name <= n_layers:
        valid = f"0 to {n_layers}, -1 to {-(n_layers + 1)} counted from the end, or 'middle'"
        raise ValueError(f"site {name!r}: expected {valid} (the model has {n_layers} blocks)")
    return int(name) if name >= 0 else n_layers + 1 + int(name)


def find_blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The outermost `nn.ModuleList` of that length; ValueError when there is none, or more than one."""
    lists = {k: v for k, v in model.named_modules() if isinstance(v, nn.ModuleList)}
    found = {k: v for k, v in lists.items() if len(v) == n_layers}
    depth = min((name.count(".") for name in found), default=0)
    outer = [name for name in found if name.count(".") == depth]
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one list of {n_layers} blocks, found {outer or 'none'}"
        )
    return found[outer[0]]


def content_hash(model: nn.Module) -> str:
    """Twelve hex digits over the names, shapes and sampled values of all weights.

    Each tensor gives up to HASH_SAMPLE evenly spread values, rounded to bfloat16, so that float32 and bfloat16
    loads of one model agree (a float16 load may not). Retraining or merging an adapter changes the hash; an edit
    that misses all sampled values or stays below bfloat16's resolution does not, nor does the config (as RoPE's base).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(_sampled(tensor.detach().flatten()).numpy().tobytes())
    return digest.hexdigest()[:12]


def _sampled(flat: Tensor) -> Tensor:
    count = min(flat.numel(), HASH_SAMPLE)
    # Exact end to end spacing rather than a stride: a stride can be a multiple of the row length and see one column.
    index = torch.arange(count) * (flat.numel() - 1) // max(count - 1, 1)
    return flat[index.to(flat.device)].to(torch.bfloat16).float().cpu()


def _short_name(name: str, gguf_file: str) -> str:
    path = Path(name).expanduser()
    if gguf_file or path.suffix == ".gguf":
        return Path(gguf_file or name).stem
    return path.resolve().name if path.is_dir() else name


def _locate(name: str, gguf_file: str) -> tuple[str, dict[str, Any], Exception | None]:
    """What `from_pretrained` gets: folder or hub id, options, and why the hub cannot be used (None where it can)."""
    path = Path(name).expanduser()
    if not gguf_file and path.suffix == ".gguf":
        path, gguf_file = path.parent, path.name
    options = {"gguf_file": gguf_file} if gguf_file else {}
    if path.is_dir():
        if gguf_file and not (path / gguf_file).is_file():
            raise ModelLoadError(
                f"model {name!r}: there is no GGUF file {gguf_file!r} in {path.resolve()}"
            )
        return str(path), {**options, "local_files_only": True}, None
    if name.endswith(".gguf") or not HUB_ID.fullmatch(name):
        raise ModelLoadError(
            f"model {name!r}: there is no such local folder or GGUF file, and it is not a hub id"
        )
    hub_error = _ask_hub(name)
    return name, {**options, "local_files_only": hub_error is not None}, hub_error


def _ask_hub(name: str) -> Exception | None:
    """One request without retries, so that an unreachable hub is known in seconds: transformers would try for minutes.

    On an error the local cache is still tried.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except EntryNotFoundError:
        return None  # a repository without config.json, as of GGUF files
    except (HTTPError, OSError, ValueError) as error:  # ValueError: a name the hub does not allow
        return error
    return None


def _explain(name: str, error: Exception) -> str:
    way = f"or fetch it elsewhere with `hf download {name} --local-dir FOLDER` and give that folder as the model"
    if isinstance(error, GatedRepoError):
        return f"model {name!r} is gated and access was refused: accept its licence and run `hf auth login`, {way}"
    if isinstance(error, RepositoryNotFoundError):
        return f"model {name!r} is no local folder and not public on the hub: if private run `hf auth login`, {way}"
    if isinstance(error, (HTTPError, ConnectionError)):
        return f"model {name!r} is no local folder, the hub cannot be reached and its cache lacks it: connect, {way}"
    return (
        f"model {name!r} cannot be loaded: {(str(error) or type(error).__name__).splitlines()[0]}"
    )
