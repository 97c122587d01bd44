"""Lenses on a tiny Llama and its store, as the browser opens them."""

from helpers.features import make_sae
from helpers.models import tiny_llama
from helpers.stores import SITE, write_store
from helpers.texts import word_tokenizer
from saelib.measure.lens import Lens, Subject


def model_and_store(folder):
    """A tiny Llama with a tokenizer of words, and its activations."""
    lm = tiny_llama()
    lm.tokenizer = word_tokenizer()
    return lm, write_store(lm, folder / "store")


def make_lens(lm, store, folder, relatives=(), **sae):
    """A lens on a random SAE; its index goes to `folder`/features."""
    return Lens(lm, make_sae(store, **sae), store, folder / "features", relatives)


def make_subjects(folder):
    """Three SAEs: two seeds at one site, each other's relatives with the third, at another site."""
    lm, store = model_and_store(folder)
    recipes = {"first": {"seed": 0}, "second": {"seed": 1}, "deep": {"seed": 2, "site": 4}}
    facts = {"lambda": 0.5, "l0": 12.0, "fvu": float("nan"), "schedule": "cosine"}
    subjects = {}

    def load(name):
        others = [subject for other, subject in subjects.items() if other != name]
        return make_lens(lm, store, folder / name, others, **recipes[name])

    for name, recipe in recipes.items():
        site = recipe.get("site", SITE)
        subjects[name] = Subject(
            name, {**facts, "run_id": f"run {name}", "site": site}, lambda name=name: load(name)
        )
    return list(subjects.values())
