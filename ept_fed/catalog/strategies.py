"""The catalogue of strategies: name, paper, options, and when not to use it.

This module is pure data. It is used by the settings (which refuse unknown names and options), the server (which runs
the strategies) and the docs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ept_fed.catalog.options import Option, fill_options

__all__ = ["STRATEGIES", "StrategyInfo", "count_asked", "resolve_options"]


@dataclass(frozen=True)
class StrategyInfo:
    """One strategy.

    Attributes:
        paper: the publication.
        summary: what it does, in one sentence.
        caveat: when not to use it.
        options: the strategy's options by name.
        minimum_sites: number of sites that its assumption requires, given the options.
        wants_gradient: whether sites also send the gradient of their loss at the payload they received.
        sends_correction: whether the server sends each site a linear term for its loss.
        proximal_option: the option that sets the sites' `proximal_mu`, if any.
        uniform_only: whether it is defined only for equal weights of the sites.
        mean_suffices: whether it uses only the weighted mean of a round's payloads.
    """

    paper: str
    summary: str
    caveat: str
    options: Mapping[str, Option] = field(default_factory=dict)
    minimum_sites: Callable[[Mapping[str, float]], int] = lambda _options: 1
    wants_gradient: bool = False
    sends_correction: bool = False
    proximal_option: str | None = None
    uniform_only: bool = False
    mean_suffices: bool = False


_FAULTY = Option(1, 0, 1000, "f, number of faulty or hostile sites to tolerate", whole=True)
_ETA = Option(0.1, 1e-6, 10, "server learning rate")
_TAU = Option(1e-3, 1e-12, 1, "degree of adaptivity; a smaller value adapts more")
_BETAS = {
    "beta_1": Option(0.9, 0, 0.9999, "decay of the first moment"),
    "beta_2": Option(0.99, 0, 0.9999, "decay of the second moment"),
}
_ADAPTIVE = "Its step size does not shrink with the update, so with few rounds tune eta on validation data first."
_ROBUST = "If all sites are honest it discards information, and more so the more the sites' images differ."

STRATEGIES: dict[str, StrategyInfo] = {
    "fedavg": StrategyInfo(
        "McMahan et al. 2017, arXiv 1602.05629",
        "The weighted mean of the sites' payloads.",
        "One hostile site can move the mean to any value.",
        mean_suffices=True,
    ),
    "fedavgm": StrategyInfo(
        "Hsu et al. 2019, arXiv 1909.06335",
        "FedAvg with momentum on the server.",
        "Momentum carries the effect of a bad round into the next rounds.",
        {
            "server_learning_rate": Option(1.0, 1e-6, 10, "step along the averaged update"),
            "server_momentum": Option(0.9, 0, 0.9999, "share of the last step that is repeated"),
        },
        mean_suffices=True,
    ),
    "fedprox": StrategyInfo(
        "Li et al. 2020, arXiv 1812.06127",
        "FedAvg with a penalty of mu/2 times the squared distance from the global payload in the sites' loss.",
        "If mu is too large, the sites do not learn.",
        {"proximal_mu": Option(0.01, 0, 1000, "strength of the pull towards the global payload")},
        proximal_option="proximal_mu",
        mean_suffices=True,
    ),
    "fedadam": StrategyInfo(
        "Reddi et al. 2021, arXiv 2003.00295",
        "Adam on the server, with the averaged update as its gradient.",
        _ADAPTIVE,
        {"eta": _ETA, "tau": _TAU, **_BETAS},
        mean_suffices=True,
    ),
    "fedyogi": StrategyInfo(
        "Reddi et al. 2021, arXiv 2003.00295",
        "Yogi on the server: Adam with a second moment that grows additively.",
        _ADAPTIVE,
        {"eta": _ETA, "tau": _TAU, **_BETAS},
        mean_suffices=True,
    ),
    "fedadagrad": StrategyInfo(
        "Reddi et al. 2021, arXiv 2003.00295",
        "Adagrad on the server.",
        _ADAPTIVE,
        {"eta": _ETA, "tau": _TAU},
        mean_suffices=True,
    ),
    "fedmedian": StrategyInfo(
        "Yin et al. 2018, arXiv 1803.01498",
        "The median of the sites' payloads, coordinate by coordinate.",
        _ROBUST + " Sample counts are ignored.",
        minimum_sites=lambda _options: 3,
    ),
    "fedtrimmedavg": StrategyInfo(
        "Yin et al. 2018, arXiv 1803.01498",
        "The mean after cutting the largest and smallest share beta of every coordinate.",
        _ROBUST + " Sample counts are ignored.",
        {"beta": Option(0.2, 0, 0.49, "share cut at each end")},
        minimum_sites=lambda options: max(3, _smallest_trimming(options["beta"])),
    ),
    "krum": StrategyInfo(
        "Blanchard et al. 2017, NeurIPS",
        "The payload that is closest to its neighbours.",
        _ROBUST + " It uses a single site's payload.",
        {"num_malicious_nodes": _FAULTY},
        minimum_sites=lambda options: 2 * int(options["num_malicious_nodes"]) + 3,
    ),
    "multikrum": StrategyInfo(
        "Blanchard et al. 2017, NeurIPS",
        "The mean of the payloads that are closest to their neighbours.",
        _ROBUST,
        {
            "num_malicious_nodes": _FAULTY,
            "num_nodes_to_select": Option(2, 1, 1000, "payloads to keep and average", whole=True),
        },
        minimum_sites=lambda options: max(
            2 * int(options["num_malicious_nodes"]) + 3, int(options["num_nodes_to_select"])
        ),
    ),
    "bulyan": StrategyInfo(
        "El Mhamdi et al. 2018, arXiv 1802.07927",
        "Repeated Krum to select payloads, then a trimmed mean of the selected payloads.",
        _ROBUST + " It requires many sites.",
        {"num_malicious_nodes": _FAULTY},
        minimum_sites=lambda options: 4 * int(options["num_malicious_nodes"]) + 3,
    ),
    "qfedavg": StrategyInfo(
        "Li et al. 2020, arXiv 1905.10497",
        "Sites with a higher loss have a higher weight, and more so the larger q is.",
        "It trusts the losses that sites report, and sample counts are ignored.",
        {
            "q": Option(0.1, 0, 10, "fairness; 0 is the plain mean"),
            "client_learning_rate": Option(0.1, 1e-6, 10, "the sites' learning rate in the estimate of curvature"),
        },
    ),
    "geometric_median": StrategyInfo(
        "Pillutla et al. 2022, arXiv 1912.13445 (RFA)",
        "The point with the least weighted distance to all payloads; up to half of the weight may be arbitrary.",
        _ROBUST,
        minimum_sites=lambda _options: 3,
    ),
    "fednova": StrategyInfo(
        "Wang et al. 2020, arXiv 2007.07481",
        "Each update is divided by its site's number of steps before averaging.",
        "The normalisation is exact only for plain SGD; with AdamW it only balances the numbers of steps.",
    ),
    "scaffold": StrategyInfo(
        "Karimireddy et al. 2020, arXiv 1910.06378 (option I)",
        "Each site adds a linear term to its loss: the difference between all sites' mean gradient and its own.",
        "Each site also sends its gradient, all sites have equal weight, and the theory is for plain SGD at the sites.",
        {"server_learning_rate": Option(1.0, 1e-6, 10, "step along the averaged update")},
        wants_gradient=True,
        sends_correction=True,
        uniform_only=True,
    ),
    "feddyn": StrategyInfo(
        "Acar et al. 2021, arXiv 2111.04263",
        "A linear and a proximal term, updated each round, make the sites' minima converge to a common minimum.",
        "All sites have equal weight, and the payload diverges if alpha is too small.",
        {"alpha": Option(0.1, 1e-4, 1000, "strength of the proximal term")},
        sends_correction=True,
        proximal_option="alpha",
        uniform_only=True,
    ),
}


def resolve_options(strategy: str, given: Mapping[str, float]) -> dict[str, float]:
    """Return the value of every option of a known strategy; an option that is not given has its default."""
    return fill_options(STRATEGIES[strategy].options, given)


def count_asked(sites_per_round: float, sites: int) -> int:
    """Return how many of `sites` a round selects, at least one; `sites_per_round` is a share up to 1, or a number."""
    wanted = round(sites_per_round * sites) if sites_per_round <= 1 else int(sites_per_round)
    return min(sites, max(1, wanted))


def _smallest_trimming(beta: float) -> int:
    """Return the minimum number of sites of which the share beta is at least one whole site."""
    return 1 if beta == 0 else int(-(-1 // beta))
