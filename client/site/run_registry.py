"""The runs that a site has agreed to, on disk: a worker that was killed goes on without being asked anew.

state/<run>/proposal.json            what was agreed, with its digest
state/<run>/round-0007.safetensors   the site after that round (`client.site.state_store`)
state/<run>/received.safetensors, answers.jsonl   what the site's own report needs (`client.site.run_record`)
state/<run>/local/                   the site alone, as its own report trained it (`client.report.site_report`)
"""

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.site.run_record import RunRecord
from client.site.state_store import StateFolder
from ept_fed.config.base import Name
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.protocol.proposal import Proposal
from ept_fed.storage.files import write_json

__all__ = ["RunRegistry"]

_FILE = "proposal.json"
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class RunRegistry:
    """Proposals and states of one site by run; the folder and all in it are for the worker's user alone."""

    def __init__(self, folder: Path, site: str) -> None:
        """Take the folder, and make it if needed."""
        self._folder, self._site = folder, site
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self) -> tuple[str, ...]:
        """Return all runs, the one agreed to last first."""
        found = sorted(self._folder.glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
        return tuple(path.parent.name for path in found)

    def find(self, run: str) -> Proposal:
        """Return what was agreed for a run.

        Raises:
            MessageRefusedError: for a run that was never proposed, or whose file is damaged.
        """
        path = self._path(run) / _FILE
        if not path.exists():
            raise MessageRefusedError(
                f"run {run} was never proposed to this site; the server has to introduce it first"
            )
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            proposal = Proposal.model_validate(document["proposal"])
            sound = (document["schema"], document["run"], document["digest"]) == (1, run, proposal.digest)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise MessageRefusedError(f"what the site had agreed to for run {run} cannot be read any more") from error
        if not sound:
            raise MessageRefusedError(f"what the site had agreed to for run {run} was altered on disk")
        return proposal

    def agree(self, run: str, proposal: Proposal) -> None:
        """Write an agreement down; agreeing to the same again changes nothing.

        Raises:
            MessageRefusedError: if the run's name is none, or the site agreed to something else under it.
        """
        path = self._path(run) / _FILE
        if path.exists():
            if self.find(run).digest != proposal.digest:
                raise MessageRefusedError(f"run {run} was proposed to this site with other settings; name a new run")
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(
            path, {"schema": 1, "run": run, "digest": proposal.digest, "proposal": proposal.model_dump(mode="json")}
        )

    def states(self, run: str) -> StateFolder:
        """Return where the site keeps its states of a run."""
        return StateFolder(self._path(run), run=run, site=self._site)

    def record(self, run: str) -> RunRecord:
        """Return what the site keeps of a run for its own report."""
        return RunRecord(self._path(run), run=run, site=self._site)

    def local(self, run: str) -> Path:
        """Return where the site's own report keeps the states of the site alone."""
        return self._path(run) / "local"

    def _path(self, run: str) -> Path:
        """Return a run's folder; its name came over a wire and must not lead anywhere else."""
        try:
            return self._folder / _NAME.validate_python(run)
        except ValidationError as error:
            raise MessageRefusedError(
                "the run's name is not 1 to 64 letters, digits, dots, dashes or underscores"
            ) from error
