"""One SAE's whole training step (forward, gradients, Adam, norm) against bare dense products.

    python benchmarks/step.py [--json PATH] [--l0 32 64] [--sweep l0|latents] [--peers]
        [--summary PATH] [--memory | --parts] [--figure PATH]

The unit is the time of the five matrix products that a dense plain step needs (x W_enc, f W_dec, e
W_decᵀ, fᵀ e, xᵀ g) in the same shapes, float32, timed in turn with the rest. L0 is k, or set by the
encoder's bias, on random rows, with a learning rate so small that it stays. On CUDA nothing but
torch, triton, transformers, safetensors and numpy is needed. --peers adds every system of SAELens,
dictionary_learning and sparsify (benchmarks/requirements.txt): their own trainers' step; a dense
step does not depend on L0. A second table then has, for each of our objectives, the faster of our
steps over bare products, and the fastest peer of the same architecture over it. No latent is dead
in so few steps, so no AuxK is in these times, ours or theirs. --parts takes the plain sparse step
apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import interleaved, machine, median, parser, report

from saelib.config import SAEConfig, TrainConfig
from saelib.sae import ARCHITECTURES, build_sae, sparse
from saelib.sae.dense import encoder_product
from saelib.sae.spec import ARMS
from saelib.sae.trainer import Trainer

COLUMNS = (
    "name",
    "arch",
    "loss",
    "step",
    "l0",
    "n_latents",
    "batch",
    "seconds_median",
    "ratio_to_matmuls",
)
RUNS = ("dense", "sparse", "auto")  # "auto": dense and then sparse, as a whole run is
SUMMARY = ("arch", "loss", "l0", "step", "ratio_to_matmuls", "fastest_peer", "peer_over_ours")
# Standard deviation of a JumpReLU SAE's pre-activations on these rows. A step takes the codes in
# the lower half of the kernel's band too: 1.4 times as many as fire, as in SAEs that were trained
# on profile smoke's rows (L0 26 to 33, standard deviation 1 there, but with longer tails).
JUMP_SPREAD = 1.8


def products(
    d: int, n: int, batch: int, device: str, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """The five products of a dense plain step, into memory of their own."""
    x, f, W = (
        torch.randn(*s, device=device, dtype=dtype) for s in ((batch, d), (batch, n), (n, d))
    )
    codes, rows, weights = torch.empty_like(f), torch.empty_like(x), torch.empty_like(W)

    def run() -> None:
        torch.mm(x, W.T, out=codes)
        torch.mm(f, W, out=rows)
        torch.mm(x, W.T, out=codes)
        torch.mm(f.T, x, out=weights)
        torch.mm(f.T, x, out=weights)

    return run


def trainer_at(
    loss: str, step: str, d: int, n: int, x: torch.Tensor, l0: float, encoder: str = "exact"
) -> Trainer:
    """A trainer of one of our objectives in mid-run, whose codes have about that L0 on rows x."""
    arch, _ = ARMS[loss]
    selects = ARCHITECTURES[arch].KNOB == "k"
    cfg = TrainConfig(
        loss=loss,
        step=step,
        encoder=encoder,
        lr=1e-9,
        batch_size=len(x),
        tokens=len(x) * 10**6,
        lam=0.0 if selects else 1.0,
    )
    config = SAEConfig(arch, d, n, options={"k": int(l0)} if selects else {})
    sae = build_sae(config, torch.Generator().manual_seed(0)).to(x.device)
    if not selects:
        set_l0_(sae, x, l0)
    trainer = Trainer(sae, cfg)
    trainer.density = l0 / n
    trainer.step = cfg.total_steps // 2  # where p is half annealed
    return trainer


@torch.no_grad()
def set_l0_(sae: Any, x: torch.Tensor, l0: float) -> None:
    """Biases of the encoder such that about l0 latents fire on rows x [batch, d]."""
    above = 0.0
    if sae.config.arch == "jumprelu":
        sae.W_enc *= JUMP_SPREAD / (x[:256] @ sae.W_enc).std()
        above = sae.bias_start("threshold")
    some = (x[:256] @ sae.W_enc).flatten()
    rank = max(1, round(some.numel() * (1 - l0 / sae.config.n_latents)))
    bias = above - float(some.kthvalue(rank).values)
    for name in sae.bias_names():
        if name != "threshold":
            getattr(sae, name).fill_(0.0 if name == "r_mag" else bias)


@torch.no_grad()
def l0_of(sae: Any, x: torch.Tensor) -> float:
    """Latents that fire on rows x [batch, d] in training."""
    if type(sae).KNOB == "k":
        return float(sae.options.k)
    return float((sae.encode(x[:256]) > 0).sum(1).float().mean())


Key = tuple[str, str, str, str]  # name, arch, loss, step


def builders(
    args: Any, n: int, l0: int, x: torch.Tensor, steps: tuple[str, ...] = ("dense", "sparse")
) -> dict[Key, Callable[[], tuple[Callable[[], Any], Any]]]:
    """What makes each row: a function that returns the step and, for ours, its trainer."""
    out: dict[Key, Callable] = {}
    out["bare matmuls", "", "", "dense"] = lambda: (products(args.d, n, len(x), args.device), None)

    def ours(loss: str, step: str) -> tuple[Callable[[], Any], Trainer]:
        trainer = trainer_at(loss, step, args.d, n, x, l0)
        first = trainer.step

        def begins_dense() -> None:
            trainer.density = 1.0 if trainer.step < first + 2 else l0 / n
            trainer.step_(x)

        return (begins_dense if step == "auto" else lambda: trainer.step_(x)), trainer

    for loss, (arch, _) in ARMS.items():
        for step in steps:
            out[f"saelib {loss}", arch, loss, step] = partial(ours, loss, step)
    if args.peers:
        import peers  # only where they are installed

        out |= {
            key: (lambda make=make: (make(), None))
            for key, make in peers.steps(args.d, n, x, l0).items()
        }
    return out


def measure(args: Any, n: int, l0: int) -> list[dict[str, Any]]:
    """Rows of one shape."""
    torch.manual_seed(0)
    x = torch.randn(args.batch, args.d, device=args.device)
    made = {key: make() for key, make in builders(args, n, l0, x).items()}
    times = interleaved([step for step, _ in made.values()], args.rounds, args.device)
    unit, rows = median(times[0]), []
    for (key, (_, trainer)), found in zip(made.items(), times, strict=True):
        row = dict(zip(("name", "arch", "loss", "step"), key, strict=True))
        selects = bool(key[1]) and ARCHITECTURES[key[1]].KNOB == "k"
        row["l0"] = l0_of(trainer.sae, x) if trainer else float(l0) if selects else None
        row |= {
            "n_latents": n,
            "batch": args.batch,
            "d": args.d,
            "seconds_median": median(found),
            "seconds": found,
        }
        rows.append(row | {"ratio_to_matmuls": median(found) / unit})
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each shape and objective of ours: its faster step, and the fastest peer's over it.

    "two_term" has no peer: theirs of that architecture train with the full loss.
    """
    out = []
    shapes = dict.fromkeys((row["n_latents"], row["target_l0"]) for row in rows)
    for n, l0 in shapes:
        here = [r for r in rows if (r["n_latents"], r["target_l0"]) == (n, l0)]
        for loss, (arch, _) in ARMS.items():
            mine = [r for r in here if r["name"] == f"saelib {loss}"]
            theirs = [r for r in here if r["arch"] == arch and not r["name"].startswith("saelib")]
            if loss == "two_term" or not theirs:
                continue
            ours, peer = (min(found, key=lambda r: r["seconds_median"]) for found in (mine, theirs))
            row = {k: ours[k] for k in ("arch", "loss", "step", "n_latents", "ratio_to_matmuls")}
            over = peer["seconds_median"] / ours["seconds_median"]
            out.append(row | {"l0": l0, "fastest_peer": peer["name"], "peer_over_ours": over})
    return out


def parts(args: Any) -> list[dict[str, Any]]:
    """Where the plain sparse step's time goes, beside the encoder's product, which must stay."""
    torch.manual_seed(0)
    x = torch.randn(args.batch, args.d, device=args.device)
    trainer = trainer_at("plain", "sparse", args.d, args.latents, x, args.l0[0])
    trainer.step_(x)
    sae, ops, n, encoder = trainer.sae, sparse.operations(x.device), args.latents, trainer.encoder()
    p, x_c = {k: v.detach() for k, v in sae.named_parameters()}, x - sae.b_dec.detach()
    at, f = sae.encode_sparse(x, encoder)
    error, _, g_pre = ops.decode(x, p["W_dec"], p["b_dec"], at, f, 2 / len(x))

    def weights() -> None:
        ops.weight_gradient(error, at, f, n, sae.W_dec.grad)
        ops.weight_gradient(x_c, at, g_pre, n, sae.W_enc.grad.T)

    calls = {
        "bare matmuls": products(args.d, n, len(x), args.device),
        "encoder product, float32": lambda: encoder_product(x_c, p["W_enc"], "exact"),
        "encoder product, bfloat16": lambda: encoder_product(x_c, p["W_enc"], "bfloat16"),
        f"encoder, entries found ({encoder})": lambda: ops.open_entries(
            x_c, p["W_enc"], p["b_enc"], encoder
        ),
        "decoder and code gradients": lambda: ops.decode(
            x, p["W_dec"], p["b_dec"], at, f, 2 / len(x)
        ),
        "weight gradients": weights,
        "Adam, decoder norms": trainer.optimizer.step,
        "the whole step": lambda: trainer.step_(x),
    }
    times = interleaved(list(calls.values()), args.rounds, args.device)
    return [
        {"name": name, "l0": trainer.density * n, "n_latents": n, "batch": len(x), "d": args.d,
         "seconds_median": median(found), "ratio_to_matmuls": median(found) / median(times[0])}
        for name, found in zip(calls, times, strict=True)
    ]  # fmt: skip


def peak_memory(args: Any) -> list[dict[str, Any]]:
    """Peak memory of three steps of each row, weights and moments included, in its own process."""
    x = torch.zeros(1, args.d)
    rows = []
    context = get_context("forkserver")
    # loaded once for all rows; Python 3.11 does not load "__main__", whatever is said
    context.set_forkserver_preload(["torch", "transformers.optimization", "saelib.sae.trainer"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as alone:
        for key in builders(args, args.latents, args.l0[0], x, RUNS):
            peak = alone.submit(memory_of, key, args).result()
            row = dict(zip(("name", "arch", "loss", "step"), key, strict=True))
            rows.append(row | {"n_latents": args.latents, "batch": args.batch, "peak_mb": peak})
    return rows


def memory_of(key: Key, args: Any) -> float:
    """MB that building one row and three of its steps add.

    A small copy of the row has loaded the libraries before.
    """
    torch.manual_seed(0)
    x = torch.randn(args.batch, args.d, device=args.device)
    small, _ = builders(args, 128, 8, x[:256], RUNS)[key]()
    small()
    small()
    del small
    make = builders(args, args.latents, args.l0[0], x, RUNS)[key]
    if args.device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
        before = _status("VmRSS")
    step, _ = make()
    for _ in range(3):
        step()
    after = (
        torch.cuda.max_memory_allocated() if args.device.startswith("cuda") else _status("VmHWM")
    )
    return (after - before) / 1e6


def _status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def draw(rows: list[dict[str, Any]], column: str, path: Path) -> None:
    """Step time against `column`, in units of the smallest shape's bare products, on log axes."""
    # Not needed where only times are wanted.
    import matplotlib.pyplot as plt

    from saelib.show.style import FAINT, LOOKS, Look, style

    unit = next(row["seconds_median"] for row in rows if row["name"] == "bare matmuls")
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        at = row["target_l0"] if column == "l0" else row[column]
        lines.setdefault((row["name"], row["step"]), []).append((at, row["seconds_median"] / unit))
    grown = {key: line[-1][1] / line[0][1] for key, line in lines.items()}
    with style():
        figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
        for (name, step), line in lines.items():
            look = LOOKS.get(name.removeprefix("saelib "), Look(name, FAINT, ""))
            line_style = {
                "ls": "--" if step == "dense" else "-",
                "color": look.color,
                "marker": look.marker,
            }
            axes.plot(
                *zip(*line, strict=True),
                **line_style,
                label=f"{look.label}, {step}" if look.marker else look.label,
            )
        axes.set(
            xscale="log",
            yscale="log",
            ylabel="time of a step\n(1 = bare products of the smallest shape)",
        )
        axes.set_xlabel({"l0": "L0 (active latents a token)", "n_latents": "latents"}[column])
        ticks = [at for at, _ in next(iter(lines.values()))]
        axes.set_xticks(ticks, [f"{at:,}" for at in ticks])
        axes.set_xticks([], minor=True)
        low, high = axes.get_ylim()
        marks = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= v <= high]
        axes.set_yticks(marks, [f"{v:g}" for v in marks])
        axes.set_yticks([], minor=True)
        of = f"{ticks[0]:,} to {ticks[-1]:,} {'active latents' if column == 'l0' else 'latents'}"
        plain = ", ".join(
            f"{step} × {grown['saelib plain', step]:.1f}" for step in ("dense", "sparse")
        )
        title = (
            f"From {of} the plain step takes: {plain}\n"
            f"(bare products × {grown['bare matmuls', 'dense']:.1f})"
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.legend(loc="outside right center", fontsize=9)
        figure.savefig(path, dpi=120)


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--d", type=int, default=576)
    options.add_argument("--latents", type=int, default=4608)
    options.add_argument("--batch", type=int, default=2048)
    options.add_argument(
        "--l0", type=int, nargs="+", default=[64], help="several, without a sweep over them"
    )
    options.add_argument("--sweep", choices=("none", "l0", "latents"), default="none")
    options.add_argument(
        "--peers", action="store_true", help="with benchmarks/requirements.txt installed"
    )
    options.add_argument("--memory", action="store_true", help="peak memory instead of time")
    options.add_argument("--parts", action="store_true", help="the plain sparse step taken apart")
    options.add_argument("--summary", type=Path, help="write the second table there as JSON")
    options.add_argument("--figure", type=Path, help="draw the sweep there")
    args = options.parse_args()
    about = machine(args.device)
    if args.memory:
        report(
            peak_memory(args),
            ("name", "arch", "loss", "step", "n_latents", "batch", "peak_mb"),
            about,
            args.json,
        )
        return
    if args.parts:
        report(
            parts(args),
            ("name", "l0", "n_latents", "batch", "seconds_median", "ratio_to_matmuls"),
            about,
            args.json,
        )
        return
    shapes = {
        "none": [(args.latents, l0) for l0 in args.l0],
        "l0": [(args.latents, l0) for l0 in (8, 16, 32, 64, 128, 256, 512)],
        "latents": [(args.d * times, args.l0[0]) for times in (4, 8, 16, 32)],
    }[args.sweep]
    rows = [row | {"target_l0": l0} for n, l0 in shapes for row in measure(args, n, l0)]
    report(rows, COLUMNS, about, args.json)
    if args.peers:
        report(summary(rows), SUMMARY, about, args.summary)
    if args.figure:
        draw(rows, "n_latents" if args.sweep == "latents" else "l0", args.figure)


if __name__ == "__main__":
    main()
