"""Amazon Bedrock's Converse, as a target only: no client speaks it to the gateway, so requests are written and answers are read, never the other way.

The facts are AWS's API reference (API_runtime_Converse, API_runtime_ConverseStream). Streams come as server-sent events: egress has taken AWS's framing off
(`formats/event_stream.py`), the event's name is the name of the member of `ConverseStreamOutput`.
"""
