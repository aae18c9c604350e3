"""What admin has asked of one peer and waits for: each question is settled once, by its answer, by the loss of the peer or by its deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from cliproxy.errors import ChannelError
from cliproxy.ipc.commands import Answered, Asked, Command, Refused, Reply, answer_type

R = TypeVar("R", bound=Reply)


class _Question(msgspec.Struct):
    """One under way. `then` gets the answer, or `None` when there will be none. `deadline` in monotonic seconds."""

    answer: type[Reply]
    then: Callable[[Any], None]
    deadline: float


class Questions:
    """The questions to `peer`. `tell` hands a message to its channel and says False when it was not taken."""

    def __init__(self, peer: str, tell: Callable[[Asked[Any]], bool]) -> None:
        self._peer = peer
        self._tell = tell
        self._last = 0
        self._under_way: dict[int, _Question] = {}

    def ask(self, command: Command[R], then: Callable[[R | Refused | None], None], *, operator: str, deadline: float) -> bool:
        """Ask; `then` is called once, later. `False`: the peer is away, and `then` is never called."""
        self._last += 1
        request = self._last
        self._under_way[request] = _Question(answer_type(type(command)), then, deadline)
        if self._tell(Asked(request=request, operator=operator, command=command)):
            return True
        del self._under_way[request]
        return False

    def answered(self, message: Answered[Any]) -> None:
        """Settle the question that `message` answers; a late answer is dropped. Raises `ChannelError` when it fits no question."""
        question = self._under_way.get(message.request)
        if question is None:
            if 0 < message.request <= self._last:
                return  # late: the question was given up
            raise ChannelError(f"{self._peer} answered a question that nobody asked")
        if not isinstance(message.answer, question.answer | Refused):
            raise ChannelError(f"{self._peer} answered with {type(message.answer).__name__}, which does not fit the question")
        del self._under_way[message.request]
        question.then(message.answer)

    def lost(self) -> None:
        """The channel is gone: no open question will be answered."""
        questions, self._under_way = self._under_way, {}
        for question in questions.values():
            question.then(None)

    def sweep(self, now: float) -> None:
        """Give up on the questions whose time is over."""
        for request in [number for number, question in self._under_way.items() if question.deadline <= now]:
            self._under_way.pop(request).then(None)
