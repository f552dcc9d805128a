"""A rule of a schedule: at one site, when to compute and what to use instead."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, Union

from pydantic import Field, FiniteFloat, model_validator

from ..forecasts import FORECASTS, Forecast
from ..forecasts.matched import Matched
from ..policies import POLICIES, Policy
from ..policies.gears import Gears
from ..policies.plan import Plan
from ..step import Signal, Step
from .format import Part, Time

if TYPE_CHECKING:
    AnyPolicy: TypeAlias = Policy
    AnyForecast: TypeAlias = Forecast
else:  # parsed by their `type`
    AnyPolicy = Annotated[Union[tuple(POLICIES.values())], Field(discriminator="type")]  # noqa: UP007
    AnyForecast = Annotated[Union[tuple(FORECASTS.values())], Field(discriminator="type")]  # noqa: UP007

LAYERS = {  # sites that are all layers of a type
    "attention": "self-attention, in space where there is one in time too",
    "temporal-attention": "self-attention in time",
    "cross-attention": "attention to the text",
    "mlp": "feed-forward",
}
Site = Literal[
    "step",
    "blocks",
    "deep",
    "encoder",
    "attention",
    "temporal-attention",
    "cross-attention",
    "mlp",
    "tokens",
    "regions",
    "guidance",
]


class TokenChoice(Part):
    """Which tokens a layer, or a whole denoiser, computes at a partial step; the others keep what they had."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1  # the fraction of the tokens that is computed
    number: Annotated[int, Field(ge=1)] | None = None  # how many tokens are computed, in place of a fraction
    # Those come first whose input changed most since they were computed ("change"), whose output is largest ("norm"),
    # which get most attention ("attention"), whose positions have the highest of `scores` ("position"), or one of each
    # cluster of similar outputs ("cluster"). At the site "regions": those whose last output deviates most over its
    # channels ("deviation").
    score: Literal["change", "norm", "attention", "position", "cluster", "deviation"] = "change"
    # what each partial step that a token was left out adds to its score; at the site "regions" it counts all of the
    # run, and its score is multiplied with e to so much
    freshness: Annotated[float, Field(ge=0)] = 0.25
    # how much of the change of its cluster's computed token a token takes over
    spread: Annotated[float, Field(ge=0, le=1)] = 0.0
    # at every so many partial steps tokens are computed; between them all keep what they had
    every: Annotated[int, Field(ge=1)] = 1
    # of each position, for sequences of the lengths of these rows
    scores: Annotated[tuple[Annotated[tuple[FiniteFloat, ...], Field(max_length=4096)], ...], Field(max_length=8)] = ()

    def count(self, tokens: int) -> int:
        """Returns how many of so many tokens are computed."""
        return min(self.number or max(1, round(self.ratio * tokens)), tokens)


class Rule(Part):
    """What to do at one site: when to compute, and what to use instead.

    Arguments:
        site: Where it skips. "step" is the whole guided output, "blocks" what the denoiser's blocks add to
            its hidden states, "deep" the inner part of a U-Net and "encoder" its way down, "attention" and the
            like the outputs of all layers of a type, "tokens" most tokens of all feed-forward layers, "guidance"
            the second denoiser call of a step; see docs/methods.md.
        policy: When to compute.
        forecast: What to use instead.
        head: How many of the first blocks are always run, as a probe, and left out of the site. Of a
            U-Net: how many layers on the way down, and as many and one on the way up.
        tail: How many of the last blocks are always run, and left out of the site.
        span: Which part of the blocks is skipped, by depth: (0, 0.5) is the front half.
        output: Whether what leaves the blocks is forecast, and not what they add.
        tokens: At the site "tokens", which of them are computed at a partial step.
        each: Whether each block or layer of the site decides for itself and has a plan of its own.
        window: Skips only at times strictly between these two, whatever the policy says. If the first is
            the higher one: only at times outside of them.
    """

    site: Site = "step"
    policy: AnyPolicy
    forecast: AnyForecast
    head: Annotated[int, Field(ge=0)] = 0
    tail: Annotated[int, Field(ge=0)] = 0
    span: tuple[Time, Time] | None = None
    output: Literal[True] | None = None
    each: Literal[True] | None = None
    tokens: TokenChoice | None = None
    window: tuple[FiniteFloat, FiniteFloat] | None = None

    @property
    def signal(self) -> Signal:
        """What has to be given to the policy, or to the forecast if only that reads one."""
        return self.policy.signal if self.policy.signal != "none" else self.forecast.signal

    @property
    def instances(self) -> set[int]:
        """For how many blocks or layers policy and forecast have something of their own; empty where all share it."""
        own = (
            getattr(part, name, ()) for part in (self.policy, self.forecast) for name in ("rows", "gates", "layers")
        )
        return set(map(len, own)) - {0, 1}

    @property
    def gears(self) -> int:
        """How many plans there are to choose from."""
        return len(self.policy.gears) if isinstance(self.policy, Plan) else 1

    @property
    def chooses(self) -> bool:
        """Whether the policy chooses among its plans during the run."""
        return isinstance(self.policy, Gears)

    @property
    def guarded(self) -> bool:
        """Whether there are signals that a guard can look at."""
        return isinstance(self.policy, Plan) and self.policy.signal_specs is not None

    @property
    def matched(self) -> bool:
        """Whether the weights are those of one plan on one grid."""
        return isinstance(self.forecast, Matched)

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int] | None:
        """Returns the numbers of the computed steps on a grid, rising; None where the run decides."""
        if not self.policy.static and not self.chooses:
            return None
        computed = set(self.policy.steps(times, gear))  # type: ignore[attr-defined]
        return [i for i, t in enumerate(times) if i == 0 or i in computed or not self.may_skip(t)]

    def may_skip(self, t: float) -> bool:
        """Whether the window allows to skip at a time."""
        if self.window is None:
            return True
        low, high = self.window
        return low < t < high if low < high else t > low or t < high

    def computes(self, state: Any, step: Step) -> bool:
        """Whether to compute at this step: what the policy says, where skipping is allowed."""
        says = self.policy.compute(state, step)  # asked at every step, as it may keep count
        return says or not self.may_skip(step.t)

    @model_validator(mode="after")
    def _site_has_the_signal(self) -> Self:
        reads = self.signal in ("modulated", "residual")
        inside = self.head or self.tail or self.span or self.output or reads
        if self.site not in ("blocks", "deep") and inside:
            raise ValueError(
                f"the site {self.site!r} has no blocks, so no head, no tail and no {self.signal!r} signal: "
                "use the site 'blocks', or a policy on the 'input'"
            )
        if self.site == "deep" and (self.tail or self.span or self.output or reads):
            raise ValueError("the site 'deep' has a head and no tail, no span and no signal but the input")
        if (self.site in ("tokens", "regions")) != (self.tokens is not None):
            raise ValueError("the sites 'tokens' and 'regions' need `tokens`, a choice of them; no other site has any")
        if self.tokens and (self.site == "regions") != (self.tokens.score == "deviation"):
            raise ValueError("the score 'deviation' is that of the site 'regions', and that of no other site")
        if self.site == "regions" and (self.forecast.type != "extrapolate" or self.forecast.depth > 1):
            raise ValueError("regions that are left out keep what they had: the forecast is 'extrapolate' of order 0")
        if self.site == "tokens" and (self.forecast.keeps_latents or self.forecast.signal != "none"):
            raise ValueError(f"the site 'tokens' forecasts from outputs alone, which {self.forecast.type!r} does not")
        if self.each and self.site not in ("blocks", "encoder", *LAYERS):
            raise ValueError(f"the site {self.site!r} is one: `each` is for 'blocks' and types of layers")
        if self.each and (self.head or self.tail or self.span or reads):
            raise ValueError("`each` goes with no head, no tail, no span, and the 'input' as the only signal")
        if len(self.instances) > 1 or (self.instances and not self.each):
            counts = " and ".join(map(str, sorted(self.instances)))
            raise ValueError(f"rows for {counts} blocks or layers: policy and forecast need as many, and `each`")
        if self.site == "blocks" and self.signal == "residual" and not self.head:
            raise ValueError("the 'residual' signal is that of the head: give it a block or more")
        if self.span and (self.head or self.tail or self.span[0] >= self.span[1]):
            raise ValueError(f"the span {self.span} has to rise, and goes with no head and no tail")
        if self.site != "step" and self.forecast.keeps_branches:
            raise ValueError(
                f"the feature past_c is an output of the denoiser: use it at the site 'step', not {self.site!r}"
            )
        inputs = self.forecast.keeps_latents and not (self.forecast.type == "increment" and self.site in LAYERS)
        if self.site not in ("step", "blocks") and (inputs or self.matched):
            raise ValueError(
                f"the site {self.site!r} keeps what left it and not what entered, which the forecast "
                f"{self.forecast.type!r} is made of; use 'extrapolate', 'taylor' or another one"
            )
        return self

    @model_validator(mode="after")
    def _gears_agree(self) -> Self:
        gears = len(self.policy.gears) if isinstance(self.policy, Plan) else 0
        if isinstance(self.forecast, Matched) and gears != len(self.forecast.table):
            raise ValueError("a matched forecast needs a plan with one gear for each table of weights")
        if self.chooses and self.site != "step":
            raise ValueError(f"gears are chosen at the site 'step', not at {self.site!r}")
        return self
