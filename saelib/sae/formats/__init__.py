"""Doors: SAEs written for other libraries and read from theirs, without those libraries.

    export(sae, "saelens", "out/for_saelens", model="gpt2")
    sae = load("downloads/layer_12/width_16k/average_l0_82", site=13)
    sae = load("hf://google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")

Everything outside is in model units: an SAE is written with its normaliser folded in, and read with
normalisation "none". Only safetensors, JSON and numpy's arrays without pickles are read; the
network is used for names that begin with "hf://" alone. A format is a module and a line in
`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from saelib.files import replaced_folder
from saelib.sae.architectures import load_sae
from saelib.sae.base import Autoencoder
from saelib.sae.batchtopk import jumprelu_of_batch
from saelib.sae.formats import dictionary_learning, gemma_scope, openmoss, saelens, sparsify
from saelib.sae.formats.download import SCHEME, fetched
from saelib.sae.formats.parts import FormatError, Parts, assemble
from saelib.sae.jumprelu import JumpReLUSAE, jumprelu_of
from saelib.seal import SEAL

__all__ = ["FORMATS", "FormatError", "export", "load", "recognised"]


class Format(NamedTuple):
    """How a layout is recognised, read and written."""

    files: tuple[str, ...]  # its folders hold all of them
    read: Callable[[Path], Parts] | None  # None: this package's own
    write: Callable[[Autoencoder, Path, str], None] | None = None  # SAE, folder, model's name
    archs: tuple[str, ...] = ()  # what `write` takes


# Name -> layout. Where several fit a folder, the first is taken.
FORMATS: dict[str, Format] = {
    "saelib": Format(("config.json", "weights.safetensors"), None),
    "saelens": Format(
        (saelens.CONFIG, saelens.WEIGHTS), saelens.read, saelens.write, tuple(saelens.ARCHITECTURE)
    ),
    "dictionary_learning": Format(
        (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
        dictionary_learning.read,
        dictionary_learning.write,
        tuple(dictionary_learning.CLASSES),
    ),
    "gemma_scope": Format((gemma_scope.WEIGHTS,), gemma_scope.read),
    "openmoss": Format((openmoss.CONFIG,), openmoss.read),
    "sparsify": Format((sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read),
}
# Architecture -> the JumpReLU SAE that one of its SAEs equals.
AS_JUMPRELU: dict[str, Callable[..., JumpReLUSAE]] = {
    "gated": jumprelu_of,
    "batchtopk": jumprelu_of_batch,
    "matryoshka": jumprelu_of_batch,
}
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def export(
    sae: Autoencoder, format: str, folder: str | Path, model: str = "", arch: str = ""
) -> Path:
    """Write an SAE as another library reads it, its normaliser folded into the weights.

    `model` is the language model's name for the other library's notes. `arch` "jumprelu" writes a
    Gated, BatchTopK or Matryoshka SAE as the JumpReLU SAE that it equals. Returns the folder, which
    must be new or empty.

    Raises:
        FormatError: the format is unknown or cannot be written, has not that architecture, or the
            folder holds something.
    """
    written_ones = {name: other for name, other in FORMATS.items() if other.write}
    if format not in written_ones:
        why = " can be read, not written" if format in FORMATS else ""
        raise FormatError(f"format = {format!r}{why}: expected one of {', '.join(written_ones)}")
    layout = written_ones[format]
    written = _as_arch(sae.folded(), arch)
    if written.config.arch not in layout.archs:
        way_out = "; give arch='jumprelu'" if written.config.arch in AS_JUMPRELU else ""
        raise FormatError(
            f"arch = {written.config.arch!r}: format {format!r} takes "
            f"{', '.join(layout.archs)}{way_out}"
        )
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FormatError(f"{target} is there already; export writes a new or empty folder")
    with replaced_folder(target) as temporary:
        layout.write(written, temporary, model)
    return target


def _layout(format: str) -> Format:
    if format not in FORMATS:
        raise FormatError(f"format = {format!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[format]


def _as_arch(sae: Autoencoder, arch: str) -> Autoencoder:
    """The SAE as an equal one of another architecture."""
    if arch in ("", sae.config.arch):
        return sae
    if arch == "jumprelu" and sae.config.arch in AS_JUMPRELU:
        return AS_JUMPRELU[sae.config.arch](sae)
    raise FormatError(
        f"arch = {arch!r}: an SAE of arch {sae.config.arch!r} equals none of that kind; only "
        f"{', '.join(map(repr, AS_JUMPRELU))} can be written as 'jumprelu'"
    )


def load(
    source: str | Path,
    format: str | None = None,
    site: int | None = None,
    d_in: int | None = None,
) -> Autoencoder:
    """An SAE from a folder of any format, or from the hub as "hf://owner/name[@revision]/folder".

    `site` is needed where the folder does not name one of the residual stream; `d_in` refuses an
    SAE for a model of another width. SAEs from other libraries have normalisation "none".

    Raises:
        FormatError: the folder is of no known format or not of the one given, damaged, a pickle,
            of another width or site than asked, or computes what no architecture here does.
    """
    names = sorted({name for layout in FORMATS.values() for name in layout.files})
    names += [*openmoss.WEIGHTS, "metrics.json", SEAL]
    path = fetched(source, names) if str(source).startswith(SCHEME) else Path(source).expanduser()
    layout = _layout(format or recognised(path))
    folder = path.parent if path.is_file() else path
    if layout.read is None:
        return _own(folder, site, d_in)
    return assemble(layout.read(folder), site, d_in)


def recognised(folder: str | Path) -> str:
    """The format of a folder, by the files in it.

    Raises:
        FormatError: there is no such folder, or it fits none; a pickle is named with its safe twin.
    """
    path = Path(folder)
    pickle = path if path.suffix in PICKLES else _pickle_alone(path)
    if pickle:
        raise FormatError(_about_pickles(pickle))
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        raise FormatError(f"{path}: there is no such folder; the hub's begin with {SCHEME!r}")
    for name, layout in FORMATS.items():
        if all((path / file).is_file() for file in layout.files):
            return name
    layouts = "; ".join(f"{name}: {' + '.join(f.files)}" for name, f in FORMATS.items())
    raise FormatError(f"{path} holds the files of no known format ({layouts})")


def _pickle_alone(folder: Path) -> Path | None:
    """A pickle in a folder that has no weights in a safe form beside it."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if any(file.suffix in (".safetensors", ".npz") for file in files):
        return None
    return next((file for file in files if file.suffix in PICKLES), None)


def _about_pickles(file: Path) -> str:
    return (
        f"{file} is a pickle, which can run any code when it is loaded, and is not read; save the "
        "state dict with safetensors.torch.save_file as ae.safetensors (dictionary_learning), or "
        "with SAELens' sae.save_model(folder)"
    )


def _own(folder: Path, site: int | None, d_in: int | None) -> Autoencoder:
    """An SAE of this package, with its normaliser."""
    sae = load_sae(folder)
    if d_in is not None and sae.config.d_in != d_in:
        raise FormatError(f"{folder}: an SAE of width {sae.config.d_in}; asked for width {d_in}")
    if site is not None and sae.config.site != site:
        raise FormatError(f"{folder}: an SAE of site {sae.config.site}; asked for site {site}")
    return sae
