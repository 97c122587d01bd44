"""Collection against the plain `transformers` loop for all hidden states, in tokens per second.

    python benchmarks/collect.py [--json PATH]

Both read the same token ids in the same dtype. Whole contexts of 128 tokens at sites {2, middle,
-2} and {2, middle} of SmolLM2 (random weights of its shape, or of Llama-2-7B's, with --random);
then pages of FEVER's lengths, as many as a shard of profile llama2-7b holds, since contexts of
equal length meet within a shard; there the plain loop pads in file order. Rows of the unpadded
comparisons are checked to be bit-equal. `share_of_matmul` is the rate of the blocks' linear layers,
over that of a square product of --matmul in the same dtype, timed in the same process.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
from harness import interleaved, machine, median, parser, report

from saelib.activations.collect import length_batches
from saelib.activations.lm import LM
from saelib.hardware import choose_dtype

SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
LLAMA2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
)
SHAPES = {"smollm2": SMOLLM2, "llama2-7b": LLAMA2_7B}
COLUMNS = (
    "name",
    "text",
    "sites",
    "tokens_per_second",
    "ratio_to_plain",
    "share_of_matmul",
    "bit_equal",
)


def random_model(shape: LlamaConfig, device: str) -> torch.nn.Module:
    """Random weights of that shape, made on the device in the dtype they are used in."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            shape, dtype=choose_dtype("auto", torch.device(device))
        ).eval()


def linear_work(shape: LlamaConfig, blocks: int) -> int:
    """Multiplications and additions a token in the linear layers of the first blocks."""
    d, kv = (
        shape.hidden_size,
        shape.hidden_size * shape.num_key_value_heads // shape.num_attention_heads,
    )
    return 2 * blocks * (2 * d * d + 2 * d * kv + 3 * d * shape.intermediate_size)


def matmul_rate(size: int, device: str, dtype: torch.dtype) -> float:
    """Multiplications and additions a second in one square product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    (times,) = interleaved([lambda: a @ b], 7, device)
    return 2 * size**3 / median(times)


def fever_lengths(n: int) -> np.ndarray:
    """Page lengths like FEVER's introductions, in tokens.

    They are log-normal with median 75, cut at one context of 128.
    """
    return np.clip(np.random.default_rng(0).lognormal(np.log(75), 0.7, n).astype(np.int64), 16, 128)


def plain(
    model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], sites: list[int]
) -> list:
    """The usual loop: all blocks and hidden states, one token's head, the sites' real tokens."""
    out = []
    with torch.inference_mode():
        for ids, mask in batches:
            attention = None if bool(mask.all()) else mask.long()
            hidden = model(
                ids,
                attention_mask=attention,
                output_hidden_states=True,
                use_cache=False,
                logits_to_keep=1,
            ).hidden_states
            out.append({site: hidden[site][mask].clone() for site in sites})
    return out


def ours(lm: LM, batches: list[tuple[torch.Tensor, torch.Tensor]], sites: list[int]) -> list:
    return [{s: x[mask] for s, x in lm.capture(ids, sites).items()} for ids, mask in batches]


def batches_of(
    lengths: np.ndarray, groups: list[np.ndarray], device: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, real) of each group of contexts; a context's ids depend on its number alone."""
    out = []
    for group in groups:
        ids = torch.zeros(len(group), int(lengths[group].max()), dtype=torch.long)
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths[group])[:, None]
        for row, c in enumerate(group):
            some = torch.Generator().manual_seed(int(c))
            ids[row, : lengths[c]] = torch.randint(
                LLAMA2_7B.vocab_size, (int(lengths[c]),), generator=some
            )
        out.append((ids.to(device), mask.to(device)))
    return out


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--model", default="data/assets/smollm2-135m-instruct-q4_1", help="a folder or hub id"
    )
    options.add_argument("--random", choices=SHAPES, help="random weights of that shape instead")
    options.add_argument("--contexts", type=int, default=96)
    options.add_argument(
        "--pages", type=int, default=1600, help="of FEVER's lengths, three rounds at most"
    )
    options.add_argument("--batch-tokens", type=int, default=4096)
    options.add_argument("--matmul", type=int, default=2048, help="size of the square product")
    args = options.parse_args()
    lm = (
        LM(random_model(SHAPES[args.random], args.device))
        if args.random
        else LM.load(args.model, device=args.device)
    )
    shape, dtype = lm.model.config, lm.dtype
    rate = matmul_rate(args.matmul, args.device, dtype)
    print(f"square product of {args.matmul} in {dtype}: {rate / 1e12:.3g} TFLOP/s")
    ends = [lm.site(site) for site in (2, "middle", -2)]
    whole, pages = np.full(args.contexts, 128), fever_lengths(args.pages)
    in_file_order = np.array_split(
        np.arange(args.pages), max(1, args.pages * 128 // args.batch_tokens)
    )
    rows = []
    for text, lengths, sites in (
        ("128 tokens", whole, ends), ("128 tokens", whole, ends[:2]), ("FEVER pages", pages, ends),
    ):  # fmt: skip
        equal = batches_of(lengths, list(length_batches(lengths, args.batch_tokens)), args.device)
        same = equal if text == "128 tokens" else batches_of(lengths, in_file_order, args.device)
        padded = batches_of(
            lengths, list(length_batches(lengths, args.batch_tokens, pad=True)), args.device
        )
        calls = {"transformers, all hidden states": partial(plain, lm.model, same, sites)}
        calls["saelib"] = partial(ours, lm, equal, sites)
        if text != "128 tokens":
            calls["saelib, pad=True"] = partial(ours, lm, padded, sites)
        both = zip(plain(lm.model, equal, sites), ours(lm, equal, sites), strict=True)
        check = [torch.equal(a[s], b[s]) for a, b in both for s in sites]
        rounds = args.rounds if text == "128 tokens" else min(3, args.rounds)
        times = interleaved(list(calls.values()), rounds, args.device, warmup=1)
        for name, found in zip(calls, times, strict=True):
            rows.append(
                {"name": name, "text": text, "sites": sites, "seconds_median": median(found)}
            )
            rows[-1] |= {
                "tokens_per_second": float(lengths.sum() / median(found)),
                "dtype": str(dtype),
            }
            blocks = max(sites) if name.startswith("saelib") else shape.num_hidden_layers
            rows[-1] |= {
                "share_of_matmul": rows[-1]["tokens_per_second"] * linear_work(shape, blocks) / rate
            }
            rows[-1] |= {"ratio_to_plain": median(np.array(times[0]) / np.array(found))}
            rows[-1] |= {"bit_equal": all(check) if name == "saelib" else None}
    report(rows, COLUMNS, machine(args.device), args.json)


if __name__ == "__main__":
    main()
