"""Collection against the plain `transformers` loop that asks for all hidden states, in tokens a second.

    python benchmarks/collect.py [--json PATH]

Both read the same token ids in the same dtype. Whole contexts of 128 tokens at sites {2, 15, 29} and {2, 15} of
SmolLM2 (random weights of its shape with --random, where its file is not at hand); then pages of FEVER's lengths, as
many as a shard of profile llama2-7b holds, since contexts of equal length meet within a shard; there the plain loop
pads in file order. Rows of the unpadded comparisons are checked to be bit-equal.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from harness import interleaved, machine, median, parser, report

from saelib.collect import length_batches
from saelib.lm import LM, choose_dtype

SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
)  # fmt: skip
COLUMNS = ("name", "text", "sites", "tokens_per_second", "ratio_to_plain", "bit_equal")


def fever_lengths(n: int) -> np.ndarray:
    """Page lengths like FEVER's introductions: log-normal with a median of 75 tokens, cut at one context of 128."""
    return np.clip(np.random.default_rng(0).lognormal(np.log(75), 0.7, n).astype(np.int64), 16, 128)


def plain(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], sites: list[int]) -> list:
    """The usual loop: the whole model, all hidden states, then the sites and the real tokens of each batch."""
    out = []
    with torch.inference_mode():
        for ids, mask in batches:
            attention = None if bool(mask.all()) else mask.long()
            hidden = model(ids, attention_mask=attention, output_hidden_states=True, use_cache=False).hidden_states
            out.append({site: hidden[site][mask].clone() for site in sites})
    return out


def ours(lm: LM, batches: list[tuple[torch.Tensor, torch.Tensor]], sites: list[int]) -> list:
    return [{s: x[mask] for s, x in lm.capture(ids, sites).items()} for ids, mask in batches]


def batches_of(lengths: np.ndarray, groups: list[np.ndarray], device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, real) of each group of contexts; a context's ids depend on its number alone."""
    out = []
    for group in groups:
        ids = torch.zeros(len(group), int(lengths[group].max()), dtype=torch.long)
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths[group])[:, None]
        for row, c in enumerate(group):
            some = torch.Generator().manual_seed(int(c))
            ids[row, : lengths[c]] = torch.randint(SMOLLM2.vocab_size, (int(lengths[c]),), generator=some)
        out.append((ids.to(device), mask.to(device)))
    return out


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--model", default="data/assets/smollm2-135m-instruct-q4_1", help="a folder or hub id")
    options.add_argument("--random", action="store_true", help="random weights of SmolLM2's shape")
    options.add_argument("--contexts", type=int, default=96)
    options.add_argument("--pages", type=int, default=1600, help="of FEVER's lengths, three rounds at most")
    options.add_argument("--batch-tokens", type=int, default=4096)
    args = options.parse_args()
    dtype = choose_dtype("auto", torch.device(args.device))
    if args.random:
        torch.manual_seed(0)
        lm = LM(LlamaForCausalLM(SMOLLM2).to(args.device, dtype))
    else:
        lm = LM.load(args.model, device=args.device)
    whole, pages = np.full(args.contexts, 128), fever_lengths(args.pages)
    in_file_order = np.array_split(np.arange(args.pages), max(1, args.pages * 128 // args.batch_tokens))
    rows = []
    for text, lengths, sites in (
        ("128 tokens", whole, [2, 15, 29]), ("128 tokens", whole, [2, 15]), ("FEVER pages", pages, [2, 15, 29]),
    ):  # fmt: skip
        equal = batches_of(lengths, list(length_batches(lengths, args.batch_tokens)), args.device)
        same = equal if text == "128 tokens" else batches_of(lengths, in_file_order, args.device)
        padded = batches_of(lengths, list(length_batches(lengths, args.batch_tokens, pad=True)), args.device)
        calls = {"transformers, all hidden states": partial(plain, lm.model, same, sites)}
        calls["saelib"] = partial(ours, lm, equal, sites)
        if text != "128 tokens":
            calls["saelib, pad=True"] = partial(ours, lm, padded, sites)
        both = zip(plain(lm.model, equal, sites), ours(lm, equal, sites), strict=True)
        check = [torch.equal(a[s], b[s]) for a, b in both for s in sites]
        rounds = args.rounds if text == "128 tokens" else min(3, args.rounds)
        times = interleaved(list(calls.values()), rounds, args.device, warmup=1)
        for name, found in zip(calls, times, strict=True):
            rows.append({"name": name, "text": text, "sites": sites, "seconds_median": median(found)})
            rows[-1] |= {"tokens_per_second": float(lengths.sum() / median(found)), "dtype": str(dtype)}
            rows[-1] |= {"ratio_to_plain": median(np.array(times[0]) / np.array(found))}
            rows[-1] |= {"bit_equal": all(check) if name == "saelib" else None}
    report(rows, COLUMNS, machine(args.device), args.json)


if __name__ == "__main__":
    main()
