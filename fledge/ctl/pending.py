"""Clara's commands whose orders do not exist yet, with what works until then: the one list, which only shrinks."""

from __future__ import annotations

from dataclasses import dataclass

LATER = "arrives with run deployment"


@dataclass(frozen=True, slots=True)
class Pending:
    """A command that cannot be obeyed yet."""

    scope: str
    usage: str
    summary: str
    nearest: str
    """What works today."""

    def __str__(self) -> str:
        return f"{self.usage.split()[0]} {LATER}; until then {self.nearest}."


_INIT = "`fledge init-run` makes a run and `fledge aggregator --run` serves it, both at the aggregator"
_TAKE = "`fledge export` writes the model, at the aggregator"

PENDING = (
    Pending("file_transfer", "upload_folder FOLDER", "Send a folder to the server.", _INIT),
    Pending("file_transfer", "download_folder NAME", "Get a folder from the server.", _TAKE),
    Pending("file_transfer", "download_text NAME ...", "Get text files from the server.", _TAKE),
    Pending("file_transfer", "download_binary NAME ...", "Get other files from the server.", _TAKE),
    Pending("training", "delete_run_number N", "Delete a run.", "`run abort` ends it"),
    Pending("training", "deploy FOLDER server|client [SITE ...]", "Hand a run out.", _INIT),
    Pending(
        "training",
        "start server|client [SITE ...]",
        "Start training.",
        "`run resume` goes on after a pause and `site undrain SITE` after `abort client SITE`",
    ),
    Pending(
        "training",
        "start_mgpu client NGPU [SITE]",
        "Start training on several accelerators.",
        "each site's own trainer decides which accelerators it uses; `sys_info client SITE` lists them",
    ),
    Pending(
        "training",
        "abort_task SITE",
        "Drop what a client trains now.",
        "`abort client SITE` lets it finish and train no more",
    ),
    Pending("job", "submit_job FOLDER", "Queue a job.", _INIT),
    Pending("job", "clone_job JOB", "Queue a job again.", _INIT),
    Pending("job", "download_job JOB", "Get what a job made.", _TAKE),
    Pending("job", "delete_job JOB", "Delete a job.", "`abort_job JOB` ends it"),
)
NEW_RUN = Pending("training", "set_run_number N", "Make a run.", f"{_INIT}, and `run list` shows which there are")
"""`set_run_number` chooses a run that is there; making one waits too."""
