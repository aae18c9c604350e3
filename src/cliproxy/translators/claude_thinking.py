"""How much Anthropic's models are to think, in their words (https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking).

| hub (`Thinking`) | `thinking` | effort | older models (`Quirks.BUDGET_THINKING`): `enabled`, with a budget of |
|---|---|---|---|
| effort `none`, or budget 0 | `disabled` | the effort, unless `none` | (`disabled`) |
| effort `minimal`, `low` | `adaptive` | `low` | 1,024, 2,048 |
| effort `medium`, `high`, `xhigh` | `adaptive` | the same | 8,192, 16,384, 32,768 |
| a budget | `adaptive` | `low` up to 2,048, `medium` up to 8,192, else `high` | the budget |
| neither, but `show` is not false | `adaptive` | none | 2,048 |

Models since 4.7 refuse budgets, models before 4.6 refuse `adaptive` and efforts. A budget is at least 1,024 and below `max_tokens`, of which an effort leaves
half to the answer (where 1,024 allow it): who asks for an effort has not said that the answer may be a single token. `show` becomes `display`; older models
always show.

Thinking is left out, and reported, where Anthropic refuses the request with it: where a tool is forced; and of older models also where a turn that calls
tools, or that the answer goes on from, does not begin with thoughts that they signed, or where 1,024 tokens have no room below `max_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cliproxy.translators.conversation import ConversationRequest, Thinking
from cliproxy.translators.policy import Losses
from cliproxy.translators.policy_targets import HubField

MIN_BUDGET_TOKENS = 1024
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "": 2048}


def effort_of(wanted: Thinking | None, *, by_budget: bool) -> str:
    """Return the effort to ask for; empty: none is said."""
    if wanted is None or by_budget:
        return ""
    if wanted.effort in _EFFORTS:
        return _EFFORTS[wanted.effort]
    if wanted.budget is None or wanted.budget <= 0:
        return ""
    return "low" if wanted.budget <= _BUDGETS["low"] else "medium" if wanted.budget <= _BUDGETS["medium"] else "high"


def thinking_of(request: ConversationRequest, losses: Losses, *, by_budget: bool, begin_with_thoughts: Callable[[], bool]) -> dict[str, Any] | None:
    """Return the value of `thinking`; `None` for nothing. Raises `UnsupportedFeature` for an unknown effort. `begin_with_thoughts` says whether the turns
    that have to do."""
    wanted = request.thinking
    if wanted is None:
        return None
    if wanted.effort and wanted.effort != "none" and wanted.effort not in _EFFORTS:
        losses.lose(HubField.EFFORT)
        return None
    if wanted.budget == 0 or wanted.effort == "none":
        return {"type": "disabled"}
    if not wanted.effort and wanted.budget is None and wanted.show is False:
        return None  # neither thinking nor thoughts are asked for
    forced = request.tool_choice is not None and request.tool_choice.mode in ("required", "named")
    if forced or (by_budget and (request.max_tokens <= MIN_BUDGET_TOKENS or not begin_with_thoughts())):
        losses.lose(HubField.THINKING)
        return None
    if by_budget:
        if wanted.budget is not None and wanted.budget > 0:
            budget = min(wanted.budget, request.max_tokens - 1)
        else:
            budget = min(_BUDGETS[wanted.effort], request.max_tokens // 2)
        return {"type": "enabled", "budget_tokens": max(budget, MIN_BUDGET_TOKENS)}
    made = {"type": "adaptive"}
    if wanted.show is not None:
        made["display"] = "summarized" if wanted.show else "omitted"
    return made
