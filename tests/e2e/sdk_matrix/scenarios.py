"""What is asked through every SDK, and what must come back: the same whether a vendor answers or the gateway stands between."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from e2e.sdk_matrix.prompts import ANSWER_SCHEMA, OTHER_TOOL, PDF, PNG, URL, WAV, WEATHER_TOOL, Prompt, Result, ask, result_of
from fakes.vendor_plan import SOURCE, SOURCE_TITLE, TAIL, THOUGHT, WEATHER, Item

Send = Callable[[Prompt], Result]

# --- how each SDK says why it ended -----------------------------------------------------------------------------------

STOPS: dict[str, dict[str, str]] = {
    "openai_chat": {"end": "stop", "length": "length", "sequence": "stop", "tools": "tool_calls", "filter": "content_filter", "refusal": "stop"},
    "openai_responses": {
        "end": "completed",
        "length": "max_output_tokens",
        "sequence": "completed",
        "tools": "completed",
        "filter": "content_filter",
        "refusal": "completed",
    },
    "anthropic_messages": {
        "end": "end_turn",
        "length": "max_tokens",
        "sequence": "stop_sequence",
        "tools": "tool_use",
        "filter": "refusal",
        "refusal": "refusal",
    },
    "gemini_generate": {"end": "STOP", "length": "MAX_TOKENS", "sequence": "STOP", "tools": "STOP", "filter": "SAFETY", "refusal": "PROHIBITED_CONTENT"},
}


# --- scenarios --------------------------------------------------------------------------------------------------------


def text(send: Send, client: str) -> Result:
    """Text comes whole, with every character."""
    result = send(ask("How are you? Ünïcode 💡\n\n  two spaces "))
    assert result.text == f"You said: How are you? Ünïcode 💡\n\n  two spaces {TAIL}"
    assert result.stop == STOPS[client]["end"]
    return result


def system(send: Send, client: str) -> Result:
    """The system prompt arrives as one."""
    result = send(ask("[[system]]", system="Answer like Nestroy. “Ja”"))
    assert result.text == f"system: Answer like Nestroy. “Ja”{TAIL}"
    return result


def multi_turn(send: Send, client: str) -> Result:
    """Every turn arrives in order."""
    first = ask("one")
    second = first.then(send(first), Item("text", text="two"))
    third = second.then(send(second), Item("text", text="[[history]]"))
    result = send(third)
    assert result.text == f"user: one | assistant: You said: one{TAIL} | user: two | assistant: You said: two{TAIL} | user: [[history]]{TAIL}"
    return result


def tools(send: Send, client: str) -> Result:
    """A call with arguments in many pieces, its result, and an answer that quotes it."""
    first = ask("[[call]] the weather", tools=(WEATHER_TOOL, OTHER_TOOL))
    called = send(first)
    assert called.text == f"Let me look{TAIL}"
    assert called.arguments() == [("get_weather", WEATHER)]
    assert called.stop == STOPS[client]["tools"]
    answer = send(first.then(called, result_of(called.calls[0], Item("text", text="12 °C, “heiter”"))))
    assert answer.text == f"The tools said: 12 °C, “heiter”{TAIL}"
    assert answer.stop == STOPS[client]["end"]
    return answer


def parallel_tool_calls(send: Send, client: str) -> Result:
    """Three calls at once, one without arguments; the results go back to the right ones."""
    first = ask("[[parallel]]", tools=(WEATHER_TOOL,))
    called = send(first)
    assert called.arguments() == [("get_weather", WEATHER), ("get_weather", {"city": "Graz"}), ("get_weather", {})]
    ids = [call.id for call in called.calls if call.id]
    assert len(set(ids)) == len(ids)
    results = [result_of(call, Item("text", text=f"result {index}")) for index, call in enumerate(called.calls)]
    answer = send(first.then(called, *results))
    assert answer.text == f"The tools said: result 0, result 1, result 2{TAIL}"
    return answer


def tool_choice(send: Send, client: str) -> Result:
    """A named tool is the one that is called; `none` calls none; `required` is required."""
    tools = (WEATHER_TOOL, OTHER_TOOL)
    assert send(ask("[[call]]", tools=tools, choice="named:other_tool")).arguments()[0][0] == "other_tool"
    said = json.loads(send(ask("[[settings]]", tools=tools, choice="required")).text)
    assert said["choice"] == "required"
    return send(ask("plain", tools=tools))


def tool_choice_none(send: Send, client: str) -> Result:
    """No tool may be called."""
    result = send(ask("[[call]]", tools=(WEATHER_TOOL, OTHER_TOOL), choice="none"))
    assert result.text == f"no tools{TAIL}"
    return result


def tool_definitions(send: Send, client: str) -> Result:
    """Name, description and schema arrive as they were written, but for the vendors' spellings of types."""
    result = send(ask("[[settings]]", tools=(WEATHER_TOOL,)))
    (tool,) = json.loads(result.text)["tools"]
    assert (tool["name"], tool["description"]) == ("get_weather", "Says the weather.")
    schema = json.loads(json.dumps(tool["schema"]).lower())
    assert schema["properties"] == json.loads(json.dumps(WEATHER_TOOL["schema"]).lower())["properties"]
    assert schema["required"] == ["city"]
    return result


def tool_error(send: Send, client: str) -> Result:
    """That a tool failed arrives as such, where the vendor has a word for it."""
    first = ask("[[call]]", tools=(WEATHER_TOOL,))
    called = send(first)
    answer = send(first.then(called, result_of(called.calls[0], Item("text", text="no network"), error=True)))
    assert answer.text in (f"The tools said: error no network{TAIL}", f"The tools said: no network{TAIL}")
    return answer


def tool_result_image(send: Send, client: str) -> Result:
    """A picture in a tool's result arrives with every byte."""
    first = ask("[[call]]", tools=(WEATHER_TOOL,))
    called = send(first)
    picture = Item("image", media="image/png", data=PNG)
    answer = send(first.then(called, result_of(called.calls[0], Item("text", text="a map"), picture)))
    assert answer.text == f"The tools said: a map + image image/png {len(PNG)} bytes{TAIL}"
    return answer


def image(send: Send, client: str) -> Result:
    """A picture arrives with every byte."""
    result = send(ask("[[media]]", Item("image", media="image/png", data=PNG)))
    assert result.text == f"image image/png {len(PNG)} bytes{TAIL}"
    return result


def image_url(send: Send, client: str) -> Result:
    """A picture's address arrives."""
    result = send(ask("[[media]]", Item("image", url=URL)))
    assert URL in result.text
    assert result.text.startswith("image ")
    return result


def document(send: Send, client: str) -> Result:
    """A PDF arrives with every byte."""
    result = send(ask("[[media]]", Item("document", media="application/pdf", data=PDF, name="report.pdf")))
    assert result.text.startswith(f"document application/pdf {len(PDF)} bytes")
    return result


def audio(send: Send, client: str) -> Result:
    """Sound arrives with every byte."""
    result = send(ask("[[media]]", Item("audio", media="audio/wav", data=WAV)))
    assert result.text == f"audio audio/wav {len(WAV)} bytes{TAIL}"
    return result


def structured_output(send: Send, client: str) -> Result:
    """The answer fits the schema, which therefore arrived."""
    result = send(ask("[[json]]", schema=ANSWER_SCHEMA))
    assert json.loads(result.text) == {"city": "Wien", "degrees": 21, "tags": ["Wien"]}
    return result


def json_object(send: Send, client: str) -> Result:
    """The answer is JSON of any kind."""
    result = send(ask("[[json]] of any kind, as JSON", json_object=True))
    assert json.loads(result.text) == {"ok": True, "ort": "Köln"}
    return result


def length(send: Send, client: str) -> Result:
    """The answer was longer than allowed."""
    result = send(ask("[[long]]"))
    assert result.text == f"This would go on and on{TAIL}"
    assert result.stop == STOPS[client]["length"]
    return result


def stop_sequence(send: Send, client: str) -> Result:
    """The answer ended where the client said."""
    result = send(ask("[[stop]]", stop=("ENDE", "halt")))
    assert result.text == f"up to here{TAIL}"
    return result


def safety(send: Send, client: str) -> Result:
    """The vendor's filter stopped the answer: no SDK may take it for an ordinary end."""
    result = send(ask("[[filter]]"))
    assert result.stop == STOPS[client]["filter"]
    return result


def refusal(send: Send, client: str) -> Result:
    """The model declined."""
    return send(ask("[[refuse]]"))


def citations(send: Send, client: str) -> Result:
    """Where the text is from comes along."""
    result = send(ask("[[cite]]"))
    assert result.text == f"Wien is in Austria{TAIL}"
    assert set(result.sources) == {(SOURCE, SOURCE_TITLE)}
    return result


def sampling(send: Send, client: str) -> Result:
    """Numbers arrive as they were said."""
    result = send(ask("[[settings]]", temperature=0.25, top_p=0.5, max_tokens=777))
    said = json.loads(result.text)
    assert (said["temperature"], said["top_p"], said["max_tokens"]) == (0.25, 0.5, 777)
    return result


def top_k(send: Send, client: str) -> Result:
    """`top_k` arrives."""
    result = send(ask("[[settings]]", top_k=40))
    assert json.loads(result.text)["top_k"] == 40
    return result


def choices(send: Send, client: str) -> Result:
    """Two answers at once."""
    result = send(ask("both", n=2))
    assert result.texts == (f"You said: both{TAIL} #0", f"You said: both{TAIL} #1")
    return result


def reasoning(send: Send, client: str) -> Result:
    """Thoughts come where the SDK shows them; after a tool's result they go back unaltered, or not at all."""
    first = ask("[[call]]", tools=(WEATHER_TOOL,), effort="medium", max_tokens=4000)
    called = send(first)
    assert called.arguments() == [("get_weather", WEATHER)]
    answer = send(first.then(called, result_of(called.calls[0], Item("text", text="sunny"))))
    assert answer.text.startswith("The tools said: sunny")
    return called


def thoughts_shown(send: Send, client: str) -> Result:
    """Thoughts are the vendor's, to the letter."""
    result = send(ask("why?", effort="medium", max_tokens=4000))
    assert result.thoughts == THOUGHT
    assert result.text == f"You said: why?{TAIL}"
    return result


SCENARIOS: dict[str, Any] = {
    one.__name__: one
    for one in (
        text,
        system,
        multi_turn,
        tools,
        parallel_tool_calls,
        tool_choice,
        tool_choice_none,
        tool_definitions,
        tool_error,
        tool_result_image,
        image,
        image_url,
        document,
        audio,
        structured_output,
        json_object,
        length,
        stop_sequence,
        safety,
        refusal,
        citations,
        sampling,
        top_k,
        choices,
        reasoning,
        thoughts_shown,
    )
}
