"""The parameters of F1, F2, F4 and F5, which their modules read.

They stand apart from what computes, so that a value is refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from saelib.config import ConfigError
from saelib.study.matched import times
from saelib.study.params import (
    AtLeastOne,
    Common,
    Count,
    CountOrZero,
    GradClip,
    Lambda,
    Lambdas,
    LearningRate,
    LearningRates,
    LossTokens,
    Multiples,
    NotNegative,
    Positive,
    PositiveLambdas,
    Recipe,
    RisingShares,
    RisingTargets,
    Seeds,
    Share,
    Sites,
    StopShare,
    Sweep,
)


class SweepParams(Recipe, Sweep):
    """The recipe and the grid of the sweep."""


class ScheduleParams(SweepParams):
    """The sweep's, and those of the schedule study."""

    schedule_seeds: Seeds = Field(description="of the schedule study; a verdict takes three")
    schedule_lam: Lambda = Field(description="λ of the schedule study")
    schedule_lrs: LearningRates = Field(description="peak rates tried with each schedule")
    n_cycles: AtLeastOne = Field(description="cycles of the cosine with hard restarts")
    stop_at: StopShare = Field(description="share of the schedule after which one arm stops")
    schedule_sites: Sites = Field(description="where the schedules are studied")
    margin: NotNegative = Field(description="extra FVU from which on one trains badly")


class LambdaParams(SweepParams):
    """The sweep, and the original recipe's λ."""

    original_lam: Positive = Field(description="the original recipe's one λ, raw units")


class GatedParams(Common, Recipe, Sweep):
    """What the comparison of the three arms is made of."""

    lambdas_two_term: Lambdas = Field(description="L1 coefficients of the two-term loss")
    lam_full: Lambda = Field(description="the full loss takes this multiple of λ")
    refine: CountOrZero = Field(description="further λ between the two next to the target L0")
    margin: NotNegative = Field(description="FVUs nearer than this share are called equal")


class GatesParams(GatedParams):
    """The comparison's parameters, and how often gates are looked at."""

    snapshots: Count = Field(description="states of the gates kept over training")


class LengthParams(GatedParams):
    """The comparison's parameters, and the lengths of training."""

    lengths: Multiples = Field(description="multiples of `tokens` at which losses are compared")
    length_l0: Positive = Field(description="active latents per token there")


class ResampleParams(Common, Recipe):
    """What the experiment is made of."""

    resample_sites: Sites = Field(description="depths of the residual stream")
    lam_two_term: Lambda = Field(description="the two-term loss takes this multiple of λ")
    lam_full: Lambda = Field(description="the full loss takes this multiple of λ")
    seeds: Seeds = Field(description="initialisation, order of rows, resampling draws")
    resample_at: RisingShares = Field(description="shares of training after which to resample")
    resample_rows: AtLeastOne = Field(description="training rows from which inputs are drawn")
    dead_window: AtLeastOne = Field(description="training tokens of silence that make one dead")
    l0_target: Positive = Field(description="active latents per token of the comparison")
    normal_lambdas: Lambdas = Field(description="L1 coefficients of the normal setting")
    dying_lambdas: Lambdas = Field(description="L1 coefficients of the setting of large steps")
    dying_lr: LearningRate = Field(description="its learning rate")
    dying_clip: GradClip = Field(description="its bound on the gradient's norm; 0 is none")
    dying_lam_warmup: Share = Field(description="its share of training in which λ rises")
    refine: CountOrZero = Field(description="further λ between the two next to the target L0")
    margin: NotNegative = Field(description="differences below this share are called equal")


class FeatureParams(Common, Recipe, Sweep):
    """The SAEs whose latents are looked at, and how."""

    lam_full: Lambda = Field(description="the full loss takes this multiple of λ")
    refine: CountOrZero = Field(description="further λ between the two next to the target L0")
    feature_tokens: Count = Field(description="training tokens on which latents are described")
    feature_margin: Share = Field(description="shares of latents nearer than this are called equal")


class ArchitectureParams(Common, Recipe):
    """All architectures at the same L0, and how their dictionaries are told from their encoders."""

    sites: Sites = Field(description="depths of the residual stream, as in hidden_states")
    seeds: Seeds = Field(description="initialisation and order of the rows; a verdict takes three")
    l0_targets: RisingTargets = Field(description="active latents per token of the comparison")
    lr_topk: LearningRate = Field(description="Adam's peak learning rate where k is set")
    lambdas: PositiveLambdas = Field(description="L1 coefficients of the plain SAE")
    lam_full: Lambda = Field(description="the Gated SAE takes this multiple of λ")
    lambdas_p_anneal: PositiveLambdas = Field(description="coefficients of the p-annealed penalty")
    lambdas_jumprelu: PositiveLambdas = Field(description="coefficients of JumpReLU's L0 penalty")
    lambdas_tanh: PositiveLambdas = Field(description="coefficients of JumpReLU's tanh penalty")
    refine: CountOrZero = Field(description="further λ or k between two far apart in L0")
    ce_tokens: LossTokens = Field(description="test tokens whose next-token loss is measured")
    item_tokens: Count = Field(description="ordinary test tokens on which codes are searched")
    margin: NotNegative = Field(description="FVUs nearer than this share are called equal")

    @model_validator(mode="after")
    def _can_be_compared(self) -> ArchitectureParams:
        """No k is above the number of latents, and no curve begins twice at one λ."""
        if max(self.l0_targets) > self.n_latents:
            raise ConfigError(
                f"l0_targets = {self.l0_targets}: expected at most n_latents = {self.n_latents}"
            )
        for name in ("lambdas", "lambdas_p_anneal", "lambdas_jumprelu", "lambdas_tanh"):
            lambdas = getattr(self, name)
            if _repeats(times(lambdas, 1.0)):
                raise ConfigError(
                    f"{name} = {lambdas}: expected λ that differ in their first three digits"
                )
        if _repeats(times(self.lambdas, self.lam_full)):
            raise ConfigError(
                f"lam_full = {self.lam_full}: expected a multiple of lambdas = {self.lambdas} with "
                "which they differ in their first three digits"
            )
        return self


def _repeats(values: Sequence[float]) -> bool:
    return len(set(values)) < len(values)
