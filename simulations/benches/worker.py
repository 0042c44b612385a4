"""Measure the time of a warm worker from a message to the start of training, and the cost of the forwarding process.

    python -m simulations.benches.worker [BACKBONE] [IMAGE_SIZE]

The worker uses its gate, so every message also waits for the ledger.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from client.gate.open_gate import open_gate
from client.site.local_round import train_local_round
from client.site.site import Charge, Site
from client.worker.process import _accept, bind_socket
from client.worker.unix_sockets import ask_worker
from client.worker.worker import Worker
from ept_fed.config.experiment import Experiment
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.pki.keys import new_key, serialize_pkcs8
from ept_fed.protocol.frames import Introduce, decode_frame, encode_frame
from ept_fed.protocol.messages import Header, RoundReply, RoundRequest
from ept_fed.protocol.proposal import SiteIntroduction, propose
from ept_fed.storage.files import write_bytes
from ept_fed.validation.load_site import load_site_settings

ROUNDS = 5
FORWARDER = """
import sys, time
started = time.time()
from flwr.app import Context, Message, RecordDict
from client.app import app
from ept_fed.flower.transport import set_task_identity
import numpy as np
imported = time.time()
from ept_fed.flower.messages import encode_request
from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.messages import Header, RoundRequest
set_task_identity(1)
size = int(sys.argv[2])
asked = RoundRequest(Header("run", 1, "b", "l"), "train", 2, np.zeros(size, np.float32), "train", TrainingSettings())
message = Message(encode_request(asked), 1, "train")
context = Context(1, 1, {"worker-socket": sys.argv[1]}, RecordDict(), {})
before = time.time()
reply = app(message, context)
# Not ru_maxrss: a child process inherits the ru_maxrss of its parent.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
megabytes = int(status["VmHWM"].split()[0]) / 1024
print(imported - started, time.time() - before, megabytes, reply.error.code)
"""


def main() -> None:
    """Serve one site in this process, and print the time of its answers and of the process that forwards to it."""
    backbone = sys.argv[1] if len(sys.argv) > 1 else "vit_small_patch14_dinov2"
    image_size = int(sys.argv[2]) if len(sys.argv) > 2 else 112
    experiment = Experiment.model_validate(
        {
            "data": {"source": "phantoms", "classes": list(STRUCTURES), "shots": 10, "validation_shots": 2},
            "model": {"backbone": backbone, "image_size": image_size},
        }
    )
    proposal = propose(experiment)
    with tempfile.TemporaryDirectory() as name:
        kit = Path(name)
        data = {"source": "phantoms", "phantom_sites": 2, "sites": ["site-1"]}
        (kit / "site.yaml").write_text(yaml.safe_dump({"site": "site-1", "data": data}))
        (kit / "policy.yaml").write_text("schema: 1\nincoming: {backbone: first}\n")
        write_bytes(kit / "keys" / "site.key", serialize_pkcs8(new_key()), mode=0o600)
        settings = load_site_settings(kit / "site.yaml")
        with bind_socket(settings) as listener:
            worker = Worker(settings, open_gate(settings, kit))
            threading.Thread(target=_accept, args=(listener, worker.answer), daemon=True).start()
            path = settings.worker.socket
            started = time.perf_counter()
            met = decode_frame(ask_worker(path, encode_frame(Introduce("run", proposal)), seconds=None))
            assert isinstance(met, SiteIntroduction), met
            cold = time.perf_counter() - started
            seen = watch()
            reached, trained = [], []
            for number in range(1, ROUNDS + 1):
                header = Header("run", number, met.backbone_digest, met.layout.hash)
                asked = RoundRequest(
                    header,
                    "train",
                    proposal.federation.rounds,
                    met.initial,
                    "train",
                    proposal.training,
                )
                sent = time.perf_counter()
                answer = ask_worker(path, encode_frame(asked), seconds=None)
                reached.append(seen["site"] - sent)
                trained.append(seen["training"] - sent)
                assert isinstance(decode_frame(answer), RoundReply)
            command = [sys.executable, "-c", FORWARDER, str(path), str(met.layout.size)]
            begun = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            whole = time.perf_counter() - begun
            imports, there_and_back, rss, _ = (float(word) for word in done.stdout.split()[-4:])
    document = {
        "backbone": f"{backbone}, {image_size} px",
        "first proposal (loads backbone and images), s": round(cold, 3),
        "message to Site.train, warm, median s": round(statistics.median(reached), 4),
        "message to first optimiser step (validation included), warm, median s": round(statistics.median(trained), 3),
        "forwarder: whole process, s": round(whole, 2),
        "forwarder: imports, s": round(imports, 2),
        "forwarder: message to the worker and back, s": round(there_and_back, 4),
        "forwarder: peak RSS, MB": round(rss),
    }
    print(json.dumps(document, indent=2))


def watch() -> dict[str, float]:
    """Return a dict that records the times at which Site.train is entered and its training starts."""
    seen: dict[str, float] = {}
    train = Site.train

    def enter(self: Site, request: RoundRequest, *, charge: Charge | None = None) -> RoundReply:
        seen["site"] = time.perf_counter()
        return train(self, request, charge=charge)

    def start(*given: Any, **named: Any) -> Any:
        seen["training"] = time.perf_counter()
        return train_local_round(*given, **named)

    Site.train = enter  # type: ignore[method-assign]
    mock.patch("client.site.site.train_local_round", start).start()
    return seen


if __name__ == "__main__":
    main()
