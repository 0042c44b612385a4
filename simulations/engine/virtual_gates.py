"""Gates of virtual sites: a rehearsal of what the policies of a consortium would refuse.

gates/policy.yaml                  the policy that every site of the run has
gates/<site>/keys/site.key         a temporary key that signs the ledger; it authenticates nobody
gates/<site>/ledger.jsonl          the site's ledger, for `ept-fed audit show` and `verify`
gates/<site>/budget.jsonl          the site's privacy budget
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from client.gate.gate import Gate
from client.gate.open_gate import SITE_KEY, open_gate_of
from client.gate.policy import load_policy
from client.requests.introduce import introduce
from client.requests.respond import GateRefusedError, ask_gate
from client.site.site import Site
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.keys import new_key, serialize_pkcs8
from ept_fed.protocol.frames import Introduce, encode_frame
from ept_fed.protocol.proposal import Proposal
from ept_fed.reports.run.run_folder import site_folder
from ept_fed.storage.files import write_bytes

__all__ = ["check_policy", "introduce_sites", "open_gates"]

_POLICY = "policy.yaml"


def check_policy(policy: Path | None, folder: Path, *, resume: bool) -> list[Problem]:
    """Return the problems of a policy for a run whose gates are in a folder; a run keeps its policy."""
    held = folder / _POLICY
    if policy is None:
        fix = f"the run to resume has gates; name {held}"
        return [Problem("--policy", None, fix)] if resume and held.exists() else []
    try:
        load_policy(policy)
    except InputRefusedError as refusal:
        return list(refusal.problems)
    if resume and not (held.exists() and held.read_bytes() == policy.read_bytes()):
        fix = f"is not the policy of the run to resume, {held}" if held.exists() else "the run to resume has no gates"
        return [Problem("--policy", str(policy), f"{fix}; start a new run")]
    return []


@contextmanager
def open_gates(policy: Path, sites: Iterable[str], folder: Path) -> Iterator[dict[str, Gate]]:
    """Open a gate per site, with files in `folder`; those of an earlier process are continued.

    Raises:
        InputRefusedError: if a gate's files are not sound.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    held = folder / _POLICY
    if not held.exists():
        shutil.copyfile(policy, held)
    with ExitStack() as stack:
        gates = {}
        for name in sites:
            kit = folder / site_folder(name)
            if not (kit / SITE_KEY).exists():
                (kit / SITE_KEY).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_bytes(kit / SITE_KEY, serialize_pkcs8(new_key()), mode=0o600)
            gates[name] = open_gate_of(name, policy=held, state=kit, kit=kit)
            stack.callback(gates[name].close)
        yield gates


def introduce_sites(
    run: str, proposal: Proposal, sites: Mapping[str, Site], gates: Mapping[str, Gate]
) -> dict[str, str]:
    """Propose the run to every site, and return the reason of each site that refuses it, by name."""
    content = encode_frame(Introduce(run, proposal))
    refused = {}
    for name, site in sites.items():
        try:
            ask_gate(gates[name].admit_proposal, run, proposal, content)
            introduce(run, proposal, site, gates[name])
        except GateRefusedError as refusal:
            refused[name] = str(refusal)
    return refused
