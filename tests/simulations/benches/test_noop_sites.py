"""The sites of the benchmark send valid replies and need no model; the measured times are not tested here."""

import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from simulations.benches.noop_sites import client_app, name_sites, run_federation
from simulations.engine.local_grid import LocalGrid

ROOT = Path(__file__).resolve().parents[3]


def test_every_reply_is_admitted() -> None:
    sites = name_sites(12)
    run_federation(LocalGrid(client_app, sites), sites, rounds=2)


def test_a_refused_reply_spoils_the_measurement() -> None:
    broken = ClientApp()

    @broken.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError("no reply")

    with pytest.raises(RuntimeError, match="replies were refused"):
        run_federation(LocalGrid(broken, ["site-0000"]), ["site-0000"], rounds=1)


@pytest.mark.integration
def test_the_benchmark_loads_no_torch() -> None:
    code = "import sys, simulations.benches.engine; print([m for m in ('torch', 'timm', 'monai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
