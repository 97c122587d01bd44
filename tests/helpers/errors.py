"""Errors: of a tensor against another, of an SAE on rows."""


def relative(a, b):
    """‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def fvu(sae, x):
    """Fraction of the rows' variance that the SAE leaves unexplained."""
    return float((sae.reconstruct(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())
