"""Compare the gain from federated prompts with a fixed head and with personalised heads.

python -m simulations.probes.heads CONFIG [--set KEY=VALUE …] [--federating KEY=VALUE …] [--seeds 0,1,2]
    [--under "fixed head"] [--evidence 1,4,9]

Prompts are federated in three ways: with personalised heads, with a head that is averaged together with the prompts,
and with a fixed head. Afterwards the sites keep the prompts and use one of these heads:

* the head with which the prompts were federated;
* a personalised head instead, trained on the site's own images or computed from them in closed form;
* the fixed head plus an LDA head of the site's own images, for every `training.head_evidence` of --evidence.

Every number is the mean over sites of the macro AUC on validation images, minus that of local models, whose prompts and
head are trained locally. The settings of --federating, for example the number of rounds, apply only while prompts are
federated. They do not apply to local models or to heads that are made afterwards.
"""

import argparse
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from client.site.site import Site
from ept_fed.progress import Silent
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.validation.load_experiment import load_experiment, override_experiment
from simulations.engine.baselines import make_heads, train_local
from simulations.engine.federate import federate
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["compare_heads"]

# By the kind of head while the prompts are federated.
_WAYS = {
    "personalised heads": [],
    "head averaged": ["federation.share=prompts+head"],
    "fixed head": ["training.head=fixed"],
}

Scores = Mapping[str, float]


def main() -> None:
    """Compare the heads for every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--federating", action="append", default=[])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--under", action="append", choices=tuple(_WAYS), default=[])
    parser.add_argument("--evidence", default="", help="images per class, separated by commas")
    arguments = parser.parse_args()
    evidence = [float(given) for given in arguments.evidence.split(",") if given]
    gains: dict[tuple[str, str], list[list[float]]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        federation = prepare_federation(load_experiment(arguments.config, [*arguments.overrides, f"seed={seed}"]))
        with tempfile.TemporaryDirectory() as scratch:
            found = compare_heads(federation, arguments.federating, Path(scratch), arguments.under, evidence)
        local = found.pop(("local", "trained"))
        print(f"seed {seed}: local {fmean(local.values()):.3f}", flush=True)
        for row, scores in found.items():
            differences = [scores[site] - local[site] for site in local]
            print(f"seed {seed}: {', '.join(row)}: {fmean(differences):+.3f}", flush=True)
            gains.setdefault(row, []).append(differences)
    print(
        "| prompts federated with | head afterwards | federated minus local, by seed | sites that gain |\n"
        "|---|---|---|---|"
    )
    for (way, head), runs in gains.items():
        means = [fmean(site) for site in zip(*runs, strict=True)]
        told = ", ".join(f"{fmean(run):+.3f}" for run in runs)
        print(f"| {way} | {head} | {told} | {sum(mean > 0 for mean in means)} of {len(means)} |")


def compare_heads(
    federation: VirtualFederation,
    federating: Sequence[str],
    scratch: Path,
    under: Collection[str] = (),
    evidence: Sequence[float] = (),
) -> dict[tuple[str, str], Scores]:
    """Return each site's macro AUC, by the kind of head in the federation and by the head that is used afterwards.

    Args:
        federation: the federation, whose sites share prompts and have personalised heads.
        federating: settings that apply only while prompts are federated.
        scratch: an empty folder.
        under: names in `_WAYS` to compare; all of them if empty.
        evidence: values of `training.head_evidence` for the LDA heads that sites add to a fixed head.
    """
    heads = {"trained anew": [], "closed form": ["training.head=lda"]}
    scores = {("local", "trained"): _assess(train_local(federation, RunFolder(scratch / "alone"), Silent()))}
    for way, changes in _WAYS.items():
        if under and way not in under:
            continue
        changed = _change(federation, *federating, *changes)
        folder = RunFolder(scratch / way)
        sites, prompts = _federate(changed, folder)
        scores[way, "kept"] = _assess(sites)
        added = {
            f"kept, own counts half from {value:g}": ["training.head=fixed+lda", f"training.head_evidence={value:g}"]
            for value in (evidence if way == "fixed head" else ())
        }
        for head, settings in {**heads, **added}.items():
            other = _change(federation, *settings)
            scores[way, head] = _assess(make_heads(other, prompts, folder, Silent(), stage=head))
    return scores


def _change(federation: VirtualFederation, *changes: str) -> VirtualFederation:
    return replace(federation, experiment=override_experiment(federation.experiment, changes))


def _federate(federation: VirtualFederation, folder: RunFolder) -> tuple[Mapping[str, Site], Vector]:
    """Run the federation; return the sites with the final average, and its prompts without a head."""
    plan = federation.plan()
    sites = {
        name: federation.create_site(data, federation.keep_states(folder, "federated", name))
        for name, data in federation.data.sites.items()
    }
    payload = federate(plan, federation.data.digest, sites, folder, Silent(), resume=None).payload
    for site in sites.values():
        site.adopt(payload)
    layout = _change(federation, "federation.share=prompts").plan().layout
    tensors = plan.layout.unflatten(payload)
    return sites, layout.flatten({name: tensors[name] for name, _ in layout.shapes})


def _assess(sites: Mapping[str, Site]) -> Scores:
    return {name: site.assess(site.data.validation)[1]["auc"] for name, site in sites.items()}


if __name__ == "__main__":
    main()
