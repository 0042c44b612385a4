"""Inject faults into a loopback deployment one by one, and print what the operator sees, the recovery time and losses.

python -m simulations.benches.faults [NAME …]

Everything runs on this machine, so the times depend on its other load. The run without a fault is the reference.
"""

import subprocess
import sys

from simulations.deployment.faults import FAULTS, Seen
from simulations.deployment.loopback_deployment import Rehearsal, RehearsalError

_SITES = 2


def main() -> None:
    """Print one line per fault as soon as its outcome is known."""
    wanted = sys.argv[1:] or list(FAULTS)
    print("| fault | what the operator sees | seconds | lost |\n|---|---|---|---|")
    with Rehearsal(_SITES, patients=40) as rehearsal:
        rehearsal.start_server()
        for name in rehearsal.names:
            rehearsal.start_site(name)
        rehearsal.wait_online(rehearsal.names)
        for fault in wanted:
            try:
                seen = FAULTS[fault].cause(rehearsal)
            except (RehearsalError, subprocess.SubprocessError) as error:
                seen = Seen("NOT SURVIVED", (str(error).splitlines()[0],), float("nan"), "?")
                print(error, file=sys.stderr)
            survived = "" if FAULTS[fault].is_survived(seen) else "UNEXPECTED: "
            said = "; ".join(seen.says) or "no refusal"
            print(f"| {fault} | {survived}{seen.status}: {said} | {seen.seconds:.0f} | {seen.lost} |", flush=True)
            rehearsal.wait_online(rehearsal.names)
        rehearsal.stop()
        left = rehearsal.descendants()
        print(f"\nprocesses left: {left or 'none'}; sockets left: {rehearsal.sockets() or 'none'}")


if __name__ == "__main__":
    main()
