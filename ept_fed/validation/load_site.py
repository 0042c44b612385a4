"""A site's own settings, `site.yaml`: where its images and weights lie, and how its worker runs.

What is trained is the consortium's to propose (`ept_fed.protocol.proposal`); `join_proposal` makes one experiment of
both.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ept_fed.config.base import Count, Name, Positive, Settings
from ept_fed.config.data import AnyDataSettings, ManifestSettings, SharedDataSettings
from ept_fed.config.experiment import Experiment, LocalModelSettings
from ept_fed.config.yaml_reader import read_mapping, validate_settings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.proposal import Proposal
from ept_fed.validation.data import check_exists
from ept_fed.validation.experiment import validate_experiment

__all__ = [
    "NodeSettings",
    "SiteSettings",
    "WorkerSettings",
    "check_site",
    "join_proposal",
    "load_site_settings",
]

_LONGEST_SOCKET = 100  # bytes; a Unix address has 108 on Linux, 104 on macOS, and `.st` is put behind it
_SHARED = frozenset(SharedDataSettings.model_fields) | {"partition"}


class WorkerSettings(Settings):
    """The long-lived process that holds images and model."""

    socket: Path = Field(Path("run/worker.sock"), description="where SuperNode's app finds the worker")
    socket_group: str | None = Field(
        None, description="group that may connect, for a SuperNode that runs as another user; null: the owner alone"
    )
    state: Path = Field(Path("state"), description="folder of what the site keeps between rounds, local heads included")
    threads: Count | None = Field(None, description="CPU threads for training; null leaves it to torch")
    hold_minutes: Positive = Field(10.0, description="another run may start this long after the last message of one")


class NodeSettings(Settings):
    """Flower's SuperNode, which faces the network."""

    runtime_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        9094, description="loopback port of SuperNode's own processes; another for each SuperNode on one machine"
    )


class SiteSettings(Settings):
    """One site; the root of a site.yaml. Relative paths start at its folder, the kit."""

    site: Name = Field(description="as in federation.json")
    data: AnyDataSettings = Field(description="the source's own settings; what the consortium proposes is not set here")
    model: LocalModelSettings = LocalModelSettings()
    worker: WorkerSettings = WorkerSettings()
    node: NodeSettings = NodeSettings()
    policy: Path = Field(Path("policy.yaml"), description="what the site lets in and out")


def load_site_settings(path: Path) -> SiteSettings:
    """Read a site.yaml; paths are made absolute, and none is looked at: SuperNode's user may not see the images.

    Raises:
        InputRefusedError: with every problem of the file.
    """
    raw = read_mapping(path, "site.yaml", "a mapping with 'site' and 'data'")
    settings, problems = validate_settings(SiteSettings, raw, lambda _: [])
    problems += _find_misplaced(raw.get("data"))
    if problems or settings is None:
        raise InputRefusedError(problems)
    settings = _make_absolute(settings, path.resolve().parent)
    length = len(bytes(settings.worker.socket))
    if length > _LONGEST_SOCKET:
        fix = f"is {length} bytes long, a socket's path may have {_LONGEST_SOCKET}; give a shorter one, e.g. below /run"
        raise InputRefusedError([Problem("worker.socket", str(settings.worker.socket), fix)])
    return settings


def check_site(settings: SiteSettings) -> list[Problem]:
    """Look at the paths that the worker needs; return what is wrong."""
    found = []
    if settings.model.weights not in (None, "pretrained"):
        found += check_exists("model.weights", Path(str(settings.model.weights)))
    return found + check_exists("data.root", settings.data.root)


def join_proposal(settings: SiteSettings, proposal: Proposal) -> Experiment:
    """Return the experiment that a proposal and a site's own settings make together.

    Raises:
        InputRefusedError: with everything that does not fit together.
    """
    data = settings.data.model_dump() | proposal.data.model_dump()
    if isinstance(settings.data, ManifestSettings) and settings.data.columns.site is None:
        data["partition"] = {"kind": "iid", "sites": 1}
    problems = []
    if proposal.model.backbone.startswith("hf-hub:") and settings.model.weights != "pretrained":
        fix = "would be fetched from a network; set model.weights in site.yaml to 'pretrained' if that is welcome"
        problems.append(Problem("model.backbone", proposal.model.backbone, fix))
    experiment = Experiment.model_validate(
        {
            **proposal.model_dump(exclude={"sites"}),
            "data": data,
            "model": proposal.model.model_dump() | settings.model.model_dump(),
        }
    )
    problems += validate_experiment(experiment)
    if problems:
        raise InputRefusedError(problems)
    return experiment


def _find_misplaced(data: Any) -> list[Problem]:
    """Return the settings of a data section that a site may not choose for itself."""
    fix = "is proposed by the consortium, the same for all sites; remove it"
    chosen = sorted(_SHARED & set(data)) if isinstance(data, dict) else []
    return [Problem(f"data.{name}", data[name], fix) for name in chosen]


def _make_absolute(settings: SiteSettings, kit: Path) -> SiteSettings:
    data, model, worker = settings.data, settings.model, settings.worker
    weights = model.weights
    if weights not in (None, "pretrained"):
        model = model.model_copy(update={"weights": str(kit / Path(str(weights)).expanduser())})
    paths = {"socket": kit / worker.socket.expanduser(), "state": kit / worker.state.expanduser()}
    return settings.model_copy(
        update={
            "data": data.model_copy(update={"root": kit / data.root.expanduser()}),
            "model": model,
            "worker": worker.model_copy(update=paths),
            "policy": kit / settings.policy.expanduser(),
        }
    )
