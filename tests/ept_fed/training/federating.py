"""A micro federation trained over LocalGrid, for the tests of heads."""

from pathlib import Path

import numpy as np

from client.site.site import Site
from ept_fed.progress import Silent
from ept_fed.reports.run.run_folder import RunFolder
from simulations.engine.federate import federate
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["train_federation"]


def train_federation(federation: VirtualFederation, folder: Path) -> tuple[dict[str, Site], np.ndarray]:
    """Return the sites after the last round, and the last average."""
    plan, scratch = federation.plan(), RunFolder(folder)
    sites = {
        name: federation.create_site(data, federation.keep_states(scratch, "federated", name))
        for name, data in federation.data.sites.items()
    }
    return sites, federate(federation, plan, sites, scratch, Silent()).payload
