"""The auditor's answers to admin: how the log stands, a checkpoint now."""

from __future__ import annotations

from typing import Protocol

from cliproxy.audit.cycle import Cycle
from cliproxy.audit.log import LogWriter
from cliproxy.errors import ChannelError
from cliproxy.ipc.commands import AdminToAuditor, Answered, AuditorAnswer, AuditStatus, CheckpointTaken, GetAuditStatus, Refused
from cliproxy.processes.role import Peer
from cliproxy.processes.topology import ADMIN, AuditorDescriptors

AUDIT_QUERIES_PER_SECOND = 200.0  # admin's questions

_QUESTIONS_PER_TURN = 8
_WAITING = 64  # questions for a checkpoint at once
_NOT_OPEN = "the log is not open yet; try again in a moment"
_FULL = "the log cannot be written; make room on its disk"


class Owner(Protocol):
    """The auditor: its log and the log's clockwork, once they are there."""

    @property
    def log(self) -> LogWriter | None: ...
    @property
    def cycle(self) -> Cycle | None: ...
    def violation(self, peer: str, reason: str) -> None: ...


class Queries:
    """The edge to admin."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._admin: Peer[AdminToAuditor] = Peer(
            AuditorDescriptors.ADMIN_QUERY_FD, name=ADMIN, incoming=AdminToAuditor, per_second=AUDIT_QUERIES_PER_SECOND, secrets=False
        )
        self._waiting: list[tuple[int, int]] = []  # question, entries that its checkpoint must cover

    def open(self) -> bool:
        """Take the channel to a (new) admin, if there is one; whatever the old one waited for is forgotten. Whether there is one."""
        self._waiting.clear()
        self._admin.open()
        return self._admin.is_there

    def serve(self) -> bool:
        """Answer the questions that wait. `False`: admin is gone or broke the rules, and the channel was ended."""
        if not self._admin.hear(self._answer, most=_QUESTIONS_PER_TURN, violated=self._violation):
            self._waiting.clear()
        return self._admin.is_there

    def _violation(self, peer: str, error: ChannelError) -> None:
        self._owner.violation(peer, str(error))

    def covered(self, size: int, note: bytes) -> None:
        """A checkpoint for `size` entries was written: answer those who waited for it."""
        served = [request for request, target in self._waiting if target <= size]
        self._waiting = [one for one in self._waiting if one[1] > size]
        for request in served:
            self._tell(request, CheckpointTaken(note=note.decode()))

    def _answer(self, question: AdminToAuditor) -> None:
        log, cycle = self._owner.log, self._owner.cycle
        if log is None or cycle is None:
            self._tell(question.request, Refused(message=_NOT_OPEN))
        elif isinstance(question.command, GetAuditStatus):
            self._tell(question.request, _status(log, cycle))
        else:
            self._take_checkpoint(question.request, log, cycle)

    def _take_checkpoint(self, request: int, log: LogWriter, cycle: Cycle) -> None:
        if cycle.failing or len(self._waiting) >= _WAITING:
            self._tell(request, Refused(message=_FULL))
            return
        target = cycle.demand()
        self._waiting.append((request, target))
        if cycle.is_at_rest() or log.covered >= target:
            self.covered(log.covered, log.last_note)

    def _tell(self, request: int, answer: AuditorAnswer) -> None:
        # An admin that does not read its answers gets none; it asks again or gives up.
        self._admin.tell(Answered(request=request, answer=answer))


def _status(log: LogWriter, cycle: Cycle) -> AuditStatus:
    return AuditStatus(
        size=log.size,
        root=log.root,
        segment=log.segment,
        public_key=log.public_key,
        healthy=not cycle.failing,
    )
