"""Disk and memory that a plan takes, what there is, and what will not fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saelib.run import costs
from saelib.run.asked import NOISE, Group
from saelib.run.text_size import is_stored
from saelib.run.work import TOGETHER, USABLE, Setting, deep_sites

LIBRARIES = 1.5e9  # bytes of a process
TOKEN_BYTES = 45  # per token on the host: ids, places, splits, an order and the next
CARDS = (24, 80, 141)  # GB of GPUs that a plan speaks of
CHANGE = {  # what is too large -> what to do about it
    "store": (
        "lower n_docs or contexts_per_page, name fewer sites, or set store_dtype to int8, "
        "or stream_tokens"
    ),
    "SAEs": "lower n_latents, or name fewer lambdas or seeds",
    "depths": "raise depth_step, or name the notebooks to run without 05",
    "memory": "lower n_latents, batch_size or batch_tokens",
}


@dataclass(frozen=True)
class Disk:
    """Bytes to be written, less what lies there, and what else they could be."""

    store: float | int
    saes: float | int
    depths: float | int
    free: float
    site: float | int  # of one site's rows as they are stored
    site_int8: float | int  # in 8 bits
    store_streaming: float | int  # the store when training rows are live

    @property
    def total(self) -> float | int:
        return self.store + self.saes + self.depths

    @property
    def fits(self) -> bool:
        return self.total <= self.free

    @property
    def largest(self) -> str:
        """Of "store", "SAEs", "depths" the one that takes most."""
        sizes = {"store": self.store, "SAEs": self.saes, "depths": self.depths}
        return max(sizes, key=sizes.__getitem__)


@dataclass(frozen=True)
class Memory:
    """Bytes held at once, on the device and on the host, and what there is."""

    model: float | int
    forward: float | int
    buffers: float | int
    saes: float | int
    dense_step: float | int
    device: float | int
    device_has: float
    host: float | int
    host_has: float


@dataclass(frozen=True)
class Card:
    """What a GPU of some size trains at once, and what streaming repeats there."""

    gigabytes: int
    at_once: int
    hours_stored: float | int
    hours_streaming: float | int
    passes: float  # over the training text


def size_of(path: Path) -> int:
    """Bytes of the weights and rows in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))


def disk_of(setting: Setting, folder: Path, groups: Sequence[Group]) -> Disk:
    """What a profile's folder will take beside what it holds."""
    text = setting.text
    deep_folder = folder.with_name(f"{folder.name}-sites")
    deep = deep_sites(groups)

    def rows(count: float | int, sites: int, dtype: str = setting.dtype) -> float | int:
        return costs.store_bytes(count, sites, setting.shape.d_model, dtype)

    n_sites = len(setting.sites)
    store = rows(setting.rows_stored, n_sites) - size_of(folder / "store")
    saved = sum(size_of(place / "saes") for place in (folder, deep_folder))
    depths = rows(text.depths, len(deep)) - size_of(deep_folder / "store") if deep else 0
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return Disk(
        store=0.0 if is_stored(folder) else max(0.0, store),
        saes=max(0.0, _sae_bytes(setting, groups) - saved),
        depths=max(0.0, depths),
        free=float(shutil.disk_usage(there).free),
        site=rows(text.total, 1),
        site_int8=rows(text.total, 1, "int8"),
        store_streaming=rows(text.held_out, n_sites),
    )


def _sae_bytes(setting: Setting, groups: Sequence[Group]) -> float | int:
    weights = [
        group.count * costs.sae_weights(setting.shape.d_model, group.latents, group.gated)
        for group in groups
        if group.what != NOISE
    ]
    return 4 * sum(weights)


def memory_of(setting: Setting, groups: Sequence[Group]) -> Memory:
    """Bytes held at once beside each other: the model, a forward or the SAEs, live rows."""
    model = setting.width * costs.lm_weights(setting.shape)
    forward = costs.forward_bytes(setting.shape, setting.first["batch_tokens"], setting.width)
    most = 1 if setting.card else TOGETHER  # on a GPU as many as fit, at least one
    weights = [
        min(most, group.count) * costs.sae_weights(setting.shape.d_model, group.latents, True)
        for group in groups
    ]
    saes = costs.TRAINED * max(weights, default=0)
    dense_step = max((12 * group.batch * group.latents for group in groups), default=0)
    device = model + setting.live_buffers + max(forward, saes + dense_step)
    table = setting.text.total * (TOKEN_BYTES + 4 * len(setting.sites))  # norms in float32
    host_has = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Memory(
        model=float(model),
        forward=float(forward),
        buffers=float(setting.live_buffers),
        saes=float(saes),
        dense_step=float(dense_step),
        device=float(device),
        device_has=float(setting.card or host_has),
        host=LIBRARIES + table + (0.0 if setting.card else float(device)),
        host_has=host_has,
    )


def card_of(setting: Setting, groups: Sequence[Group], size: int, hours: float | int) -> Card:
    """A GPU of `size` GB; `hours` are those of the plan without streaming."""
    at_once = min((setting.fits(group, size * 1e9) for group in groups), default=0)
    if not at_once:
        return Card(size, 0, hours, hours, 0.0)
    again = setting.tokens_streamed(groups, size * 1e9)
    seconds = setting.forward(again, max(setting.sites)).seconds
    passes = again / setting.text.train
    return Card(size, at_once, hours, hours + float(seconds) / 3600, float(passes))


def misfits(disk: Disk, memory: Memory) -> list[str]:
    """What will not fit, and the parameters that change it."""
    sentences = []
    if not disk.fits:
        sentences.append(
            f"disk: {disk.total / 1e9:.1f} GB to write, {disk.free / 1e9:.1f} GB free; "
            f"most is {disk.largest}: {CHANGE[disk.largest]}"
        )
    needs = {
        "device": (memory.device, memory.device_has),
        "host": (memory.host, memory.host_has),
    }
    for place, (need, there) in needs.items():
        if need > USABLE * there:
            sentences.append(
                f"{place} memory: {need / 1e9:.1f} GB needed, {there / 1e9:.1f} GB there: "
                f"{CHANGE['memory']}"
            )
    return sentences
