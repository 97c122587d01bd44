"""The cost model of `saelib.run.costs` against measurements, and what it predicts beyond them.

    # Measures, about two minutes, best alone:
    python benchmarks/scaling.py --json benchmarks/results/scaling.json
    # Writes SCALING.md again from what is recorded:
    python benchmarks/scaling.py

Seconds are a sum of quantities (operations, bytes, steps) each times a constant. The constants of a
kind are fitted to its measurements, least squares of the relative error; the prediction of a
measurement uses the constants that the others give, so that it is one. On the H100 the constants
are those of one step's parts and of one collection.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from collect import LLAMA2_7B, SMOLLM2, random_model
from harness import interleaved, machine, parser
from step import trainer_at
from summary import cell, table

from saelib.activations.lm import LM
from saelib.measure.evaluate import tally_rows
from saelib.measure.replaced_loss import next_token_losses, next_token_probs
from saelib.run import costs
from saelib.run.work import USABLE

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE / "SCALING.md"
CTX, BATCH = 128, 512
SITES, WIDTHS, ACTIVE = (4, 10, 20, 29), (2304, 4608, 9216, 18432), (16, 64)
# Bytes that a step moves per entry of W_dec: Adam reads and writes seven numbers, twice; decoder
# norms six.
UPDATED = 80
QUANTITIES = {  # kind: the quantities its seconds are made of, and their units
    "collection": ("operations of the blocks", "tokens"),
    "training step": (
        "encoder operations",
        "operations on active codes",
        "bytes of weights moved",
        "steps",
    ),
    "measuring, loss": ("operations of the blocks", "tokens through head and loss"),
    "measuring, rows": ("encoder operations", "rows"),
}
LINKS = {
    "NVLink": 450e9,
    "between nodes": 50e9,
    "store": 2e9,
}  # bytes a second and GPU: stated, not measured here
CASES = (  # tokens, latents, GPUs, how
    (10e6, 2**14, 1, "one"),
    (100e6, 2**17, 8, "data-parallel"),
    (1e9, 2**20, 8, "split by latents"),
    (1e9, 2**20, 64, "split by latents"),
    (1e9, 2**24, 64, "data-parallel"),
    (1e9, 2**24, 64, "split by latents"),
)


# --- communication --------------------------------------------------------------------------------


def all_reduce_bytes(size: float, ranks: int) -> float:
    """What each rank sends, and receives, to add up `size` bytes over a ring."""
    return 2 * (ranks - 1) / ranks * size


def data_parallel_bytes(d: int, n: int, ranks: int) -> float:
    """A data-parallel step adds up the gradients of all weights, float32."""
    return all_reduce_bytes(4 * costs.sae_weights(d, n), ranks)


def latent_split_bytes(d: int, batch: int, ranks: int, full: bool = False) -> float:
    """Bytes that a step split by latents sends per rank.

    It adds up the reconstruction [batch, d], twice with the auxiliary term, and ∂b_dec [d].
    """
    return all_reduce_bytes(4 * d * (batch * (1 + full) + 1), ranks)


# --- measuring here -------------------------------------------------------------------------------


def step_quantities(d: int, n: int, batch: int, active: float) -> list[float]:
    dense = costs.step_flops(d, n, batch, 0)
    return [dense, costs.step_flops(d, n, batch, active) - dense, UPDATED * d * n, 1]


class _Rows:
    """Rows in memory, in a store's place."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.device = x, torch.device("cpu")

    def rows(self, _: int, index: np.ndarray) -> torch.Tensor:
        return self.x[index]

    def iter_rows(self, _: int, index: np.ndarray, size: int) -> Any:
        return iter(self.x[index].split(size))


Call = tuple[str, str, list[float], Callable[[], Any]]  # kind, size, quantities, what is timed


def lm_calls(device: str) -> list[Call]:
    """Collection to several depths, and the loss continued from them, on 1,024 SmolLM2 tokens."""
    torch.manual_seed(0)
    lm, shape = LM(random_model(SMOLLM2, device)), costs.shape_of(SMOLLM2)
    ids = torch.randint(shape.vocab, (8, CTX)).to(device)
    stream, n = lm.capture(ids, [0])[0], ids.numel()

    def loss(site: int) -> None:
        logits = lm.continue_from(site, stream, ids)
        next_token_losses(logits, ids, next_token_probs(logits))

    out: list[Call] = []
    for site in SITES:
        work = [
            n * costs.forward_flops(shape, blocks, CTX) for blocks in (site, shape.n_layers - site)
        ]
        out.append(
            ("collection", f"to site {site}", [work[0], n], partial(lm.capture, ids, [site]))
        )
        out.append(("measuring, loss", f"from site {site}", [work[1], n], partial(loss, site)))
    return out


def sae_calls(device: str) -> list[Call]:
    """Training steps of several widths and L0, and reconstruction of rows, at d = 576."""
    torch.manual_seed(0)
    x, out = torch.randn(BATCH, SMOLLM2.hidden_size, device=device), []
    index, d = np.arange(BATCH), SMOLLM2.hidden_size
    for n in WIDTHS:
        for active in ACTIVE:
            trainer = trainer_at("plain", "auto", d, n, x, active)
            size = f"{n:,} latents, L0 {active}"
            out.append(
                (
                    "training step",
                    size,
                    step_quantities(d, n, BATCH, active),
                    partial(trainer.step_, x),
                )
            )
        saes = {"sae": trainer.sae}
        call = partial(torch.no_grad()(tally_rows), saes, _Rows(x.cpu()), 0, index)
        out.append(("measuring, rows", f"{n:,} latents", [2.0 * n * d * BATCH, BATCH], call))
    return out


def measure(device: str, rounds: int) -> list[dict[str, Any]]:
    """The least seconds of every call, run in turn, the language model's before the SAEs'."""
    about, rows = machine(device), []
    for calls in (lm_calls(device), sae_calls(device)):
        times = interleaved([call for *_, call in calls], rounds, device)
        for (kind, size, quantities, _), found in zip(calls, times, strict=True):
            rows.append(
                {"kind": kind, "size": size, "quantities": quantities, "seconds": min(found)}
            )
    return [row | {"machine": about} for row in rows]


# --- the model ------------------------------------------------------------------------------------


def fitted(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Seconds a unit of each quantity, none below 0, by least squares of the relative error."""
    a = np.array([row["quantities"] for row in rows]) / np.array([[row["seconds"]] for row in rows])
    kept = np.ones(a.shape[1], dtype=bool)
    while True:  # a quantity whose constant would be negative has none
        found = np.zeros(a.shape[1])
        found[kept] = np.linalg.lstsq(a[:, kept], np.ones(len(a)), rcond=None)[0]
        if (found >= 0).all():
            return found
        kept &= found > 0


def predicted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each measurement beside what the constants of the others of its kind say."""
    out = []
    for row in rows:
        others = [r for r in rows if r["kind"] == row["kind"] and r is not row]
        seconds = float(fitted(others) @ row["quantities"])
        out.append({k: row[k] for k in ("kind", "size", "seconds")} | {"predicted": seconds})
        out[-1]["error"] = f"{seconds / row['seconds'] - 1:+.1%}"
    return out


def constants(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Units a second, by kind."""
    out = []
    for kind, names in QUANTITIES.items():
        found = fitted([row for row in rows if row["kind"] == kind])
        out += [
            {"kind": kind, "of": n, "a second": f"{1 / c:.3g}" if c else "free"}
            for n, c in zip(names, found, strict=True)
        ]
    return out


# --- one H100, and many ---------------------------------------------------------------------------


def recorded(name: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def h100() -> dict[str, float]:
    """Units per second of one H100, from one recorded step's parts and one recorded collection."""
    parts = {row["name"]: row for row in recorded("step_h100_parts")}
    one, seconds = (
        parts["the whole step"],
        {name: row["seconds_median"] for name, row in parts.items()},
    )
    d, n, b, k = 4096, one["n_latents"], one["batch"], one["l0"]
    encoder, codes, moved, _ = step_quantities(d, n, b, k)
    collected = next(row for row in recorded("collect_h100") if row["name"] == "saelib")
    flops = costs.forward_flops(costs.shape_of(LLAMA2_7B), max(collected["sites"]), CTX)
    return {
        "forward": collected["tokens_per_second"] * flops,
        "encoder": encoder / seconds["encoder, entries found (screen)"],
        "codes": codes / (seconds["decoder and code gradients"] + seconds["weight gradients"]),
        "moved": moved / (seconds["Adam"] + seconds["decoder norms"]),
    }


def h100_steps() -> list[dict[str, Any]]:
    """One H100's recorded whole steps beside what its constants say; the model has no launches."""
    rate, out = h100(), []
    for row in [*recorded("step_h100"), *recorded("step_h100_small")]:
        if row["step"] == "sparse":
            d, n, b, k = (row[name] for name in ("d", "n_latents", "batch", "l0"))
            encoder, codes, moved, _ = step_quantities(d, n, b, k)
            codes *= 1.5 if row["loss"] == "full" else 1
            seconds = encoder / rate["encoder"] + codes / rate["codes"] + moved / rate["moved"]
            size = f"{row['loss']}, d = {d:,}, {n:,} latents, batch {b:,}"
            out.append({"size": size, "seconds": row["seconds_median"], "predicted": seconds})
            out[-1]["error"] = f"{seconds / row['seconds_median'] - 1:+.1%}"
    return out


def extrapolated(
    tokens: float, n: int, ranks: int, how: str, batch: int = 8192, active: float = 64
) -> dict[str, Any]:
    """Hours on H100s of one plain SAE on Llama-2-7B's last site, by part, and what is short first.

    Data-parallel: each rank takes its share of the batch and holds all weights. Split by latents:
    each takes the whole batch and holds its share of the weights.
    """
    rate, shape = h100(), costs.shape_of(LLAMA2_7B)
    split, d = how == "split by latents", shape.d_model
    encoder, codes, moved, _ = step_quantities(d, n, batch, active)
    link = LINKS["NVLink" if ranks <= 8 else "between nodes"]
    sent = latent_split_bytes(d, batch, ranks) if split else data_parallel_bytes(d, n, ranks)
    rows = batch if split else batch / ranks  # that a rank reads
    steps, parts = (
        tokens / batch,
        {"model forward": tokens * costs.forward_flops(shape, 31, CTX) / rate["forward"] / ranks},
    )
    parts["encoder product"] = steps * encoder / rate["encoder"] / ranks
    parts["active codes"] = steps * codes / rate["codes"] / ranks
    parts["weights moved"] = steps * moved / rate["moved"] / (ranks if split else 1)
    parts["all_reduce"] = steps * sent / link
    reading = steps * rows * costs.row_bytes(d, "bfloat16") / LINKS["store"]  # while the GPU works
    held = costs.TRAINED * costs.sae_weights(d, n) / (ranks if split else 1)
    memory = held + 2 * costs.lm_weights(shape)
    hours = {name: seconds / 3600 for name, seconds in parts.items()}
    hours["in all"] = max(sum(hours.values()), reading / 3600)
    first = (
        "store bandwidth" if reading > sum(parts.values()) else max(parts, key=parts.__getitem__)
    )
    first = "memory" if memory > USABLE * 80e9 else first
    out = {
        "tokens": f"{tokens:.0e}",
        "latents": f"{n:,}",
        "GPUs": ranks,
        "how": how,
        "GB a GPU": memory / 1e9,
    }
    return (
        out
        | {f"{name}, h": value for name, value in hours.items()}
        | {"reading, h": reading / 3600, "first": first}
    )


# --- the page -------------------------------------------------------------------------------------


def sections() -> dict[str, list[str]]:
    """Tables of SCALING.md by the name of their markers."""
    rows, about = recorded("scaling"), recorded("scaling")[0]["machine"]
    checks, cases = predicted(rows), [extrapolated(*case) for case in CASES]
    rates = [{"of": name, "a second": value} for name, value in h100().items()]
    on = ", ".join(f"{k} {cell(v)}" for k, v in about.items())
    return {
        "machine": [f"`results/scaling.json`: {on}"],
        "constants": table(constants(rows), ("kind", "of", "a second")),
        "checks": table(checks, ("kind", "size", "seconds", "predicted", "error")),
        "h100": table(rates, ("of", "a second")),
        "h100 checks": table(h100_steps(), ("size", "seconds", "predicted", "error")),
        "cases": table(cases, tuple(cases[0])),
    }


def filled(text: str, parts: dict[str, list[str]]) -> str:
    """A page's text with each section between its markers; ValueError where a marker is missing."""
    for name, rows in parts.items():
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        if not closing:
            raise ValueError(f"{PAGE}: no place marked <!-- {name} --> … <!-- /{name} -->")
        text = before + opening + "\n".join(rows) + "\n" + closing + after
    return text


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    if args.json:
        rows = measure(args.device, args.rounds)
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print("\n".join(table(predicted(rows), ("kind", "size", "seconds", "predicted", "error"))))
    if args.json is None or args.json.resolve() == RESULTS / "scaling.json":
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), sections()), encoding="utf-8")


if __name__ == "__main__":
    main()
