"""Write the tables of benchmarks/README.md again from the recorded results.

python benchmarks/summary.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARKERS = "<!-- results -->", "<!-- /results -->"
STEP = ("name", "step", "l0", "seconds_median", "ratio_to_matmuls")
RECIPE = ("name", "arm", "site", "seeds", "fvu_val", "fvu", "loss_recovered", "dead_fraction")
COLLECT = (
    "name",
    "text",
    "sites",
    "tokens_per_second",
    "ratio_to_plain",
    "share_of_matmul",
    "bit_equal",
)
QUALITY = ("system", "site", "l0", "seeds", "lr", "fvu", "loss_recovered", "dead_fraction")
QUALITY += ("peers_reached",)
QUALITY += tuple(
    f"{column}_{part}" for column in ("fvu", "loss_recovered") for part in ("over_best", "lo", "hi")
)
LIVE = ("name", "site", "buffer", "lambda", "seeds")
LIVE += tuple(f"fvu_{kind}{part}" for kind in ("store", "live") for part in ("", "_lo", "_hi"))
LIVE += ("l0_store", "l0_live", "within")
STORAGE = ("name", "site", "megabytes", "fvu_rows", "fvu_rows_sink", "lost", "ce_id_change")
STORAGE += tuple(
    f"{column}{part}" for column in ("fvu", "loss_recovered") for part in ("", "_change", "_spread")
)
COVERAGE = ("name", "lengths", "tail", "pages", "coverage", "below", "above", "width", "told")
BEND = ("name", "column", "n", "holds", "bent_5", "bent_50", "bent_95")
BEND += ("error_50", "error_95", "bound_50", "parabola")
COVERAGE += ("percentile", "percentile_width", "studentised", "studentised_width")
TABLES = {  # file: heading and columns
    "step": ("One training step, d = 576, 4,608 latents, batch 2,048", STEP),
    "step_summary": (
        "The faster of our steps over bare products, and the fastest peer of the architecture over "
        "it, same shape",
        ("arch", "loss", "l0", "step", "ratio_to_matmuls", "fastest_peer", "peer_over_ours"),
    ),
    "step_parts": (
        "Where the plain sparse step's time goes, same shape",
        ("name", "seconds_median", "ratio_to_matmuls"),
    ),
    "step_memory": (
        "Peak memory of a step, weights and moments included",
        ("name", "step", "peak_mb"),
    ),
    "quality_table": (
        "Beside peers at matched L0: ours over the best peer's of the same architecture, less 1, "
        "with 95 % intervals",
        QUALITY,
    ),
    "quality_cells": (
        "In how many cells (site × L0) ours is not worse in FVU than the best peer of the "
        "architecture, by the upper end of the interval",
        ("system", "cells", "of", "at_most_0", "at_most_2_percent"),
    ),
    "recipe": (
        "The recipe taken apart: FVU at L0 32 on validation pages, where choices are made, and "
        "test pages",
        RECIPE,
    ),
    "opening": (
        "What checking costs where things are opened: this code against commit 37dbb39, which "
        "checked the store alone; milliseconds",
        ("stage", "before_ms", "now_ms", "ratio"),
    ),
    "storage": (
        "Rows of 8 bits beside bfloat16: the stores, and SAEs trained on either, all measured on "
        "the bfloat16 one",
        STORAGE,
    ),
    "pursuit": (
        "Codes without an encoder in C and in plain PyTorch, d = 576, L0 32; atoms learned from "
        "two batches",
        ("name", "n_latents", "n_rows", "form", "seconds_median", "ratio_to_plain"),
    ),
    "stream": ("Eight λ on one stream", ("name", "seconds_median", "ratio_to_alone", "bit_equal")),
    "corpus": (
        "FEVER-format pages through corpus and packing, each form in a process of its own",
        (
            "form",
            "pages_written",
            "n_docs",
            "tokens",
            "tokens_per_second",
            "peak_mb",
            "peak_over_smallest",
            "agree",
        ),
    ),
    "collect": ("Collection", COLLECT[:-2] + COLLECT[-1:]),
    "step_h100": (
        "On one H100: a training step at Llama-2-7B's width, d = 4,096, 32,768 latents, batch "
        "8,192",
        STEP,
    ),
    "step_h100_parts": (
        "Where the plain sparse step's time goes there",
        ("name", "seconds_median", "ratio_to_matmuls"),
    ),
    "step_h100_small": (
        "On one H100: d = 576, 4,608 latents, batch 2,048, where launches cost more than products",
        STEP,
    ),
    "collect_h100": (
        "On one H100: collection from random weights of Llama-2-7B's shape, bfloat16",
        COLLECT,
    ),
    "stream_h100": (
        "On one H100: eight λ on one stream",
        ("name", "seconds_median", "ratio_to_alone", "bit_equal"),
    ),
    "live_quality": (
        "Live rows against a store at equal λ and training tokens, profile default: FVU on test "
        "pages over three seeds",
        LIVE,
    ),
    "ranks": (
        "Several processes against one: the store's hash, and after 100 steps the largest ‖ΔW‖ / "
        "‖W‖ and change of FVU",
        ("name", "ranks", "dtype", "weights", "fvu", "revived", "sha256"),
    ),
    "live_memory": (
        "Peak memory of training on live rows as documents grow, training tokens fixed",
        ("name", "corpus_tokens", "tokens_trained", "peak_mb", "ratio_to_first"),
    ),
    "interval_coverage": (
        "Coverage of 95 % intervals over test pages, 2,000 made sets a row; widths over the truth",
        COVERAGE,
    ),
    "bend": (
        "Points of recorded curves left out and interpolated: errors within the bound that "
        "intervals are stretched by",
        BEND,
    ),
    "faults": (
        "Damaged files: what readers said; each silent or unnamed one is a fault",
        (
            *(
                "artifact",
                "trials",
                "silent",
                "unnamed",
                "refused",
                "noticed",
                "healed",
                "harmless",
            ),
            *("stated", "missed_by_check", "longest_s", "peak_mb"),
        ),
    ),
    "fuzz": (
        "Damaged and hostile input: trials, and those that ended in neither an answer nor an error "
        "of the project, or too late",
        ("reader", "trials", "answers", "errors", "failures", "longest_s", "peak_mb", "seconds"),
    ),
    "kills": (
        "Kills, full disks, two at once: trials, and those after which something was lost, left or "
        "unsaid",
        ("part", "name", "seed", "trials", "kills", "faults", "changes", "saes", "fvu_change"),
    ),
    "flat": (
        "One process over twenty runs of tiny SAEs, as many a run as profile default has",
        ("name", "saes", "rss_mb", "open_files", "threads", "mb_per_run"),
    ),
    "workbook": (
        "Where `make workbook` spends its time, profile default",
        ("name", "seconds", "times", "share"),
    ),
}


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    lines = [
        columns,
        ["---"] * len(columns),
        *([cell(row.get(c)) for c in columns] for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def summary() -> str:
    """The tables in Markdown, each with the machine its numbers belong to."""
    parts = []
    for name, (heading, columns) in TABLES.items():
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            rows = json.loads(path.read_text(encoding="utf-8"))
            machine = ", ".join(f"{k} {cell(v)}" for k, v in rows[0]["machine"].items())
            columns = [c for c in columns if any(c in row for row in rows)]  # a later script's
            parts += [
                f"### {heading}",
                "",
                f"`results/{name}.json`: {machine}",
                "",
                *table(rows, columns),
                "",
            ]
    return "\n".join(parts)


def filled(text: str) -> str:
    """A README's text with the tables between its markers."""
    before, _, rest = text.partition(MARKERS[0])
    return f"{before}{MARKERS[0]}\n{summary()}{MARKERS[1]}{rest.partition(MARKERS[1])[2]}"


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
