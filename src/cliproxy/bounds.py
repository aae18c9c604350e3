"""Sizes, counts and times that several modules share, or that a reader compares, each with its unit and where the number comes from.

A bound that one module uses stands at the top of that module.
"""

KIB = 1024
MIB = 1024 * 1024

# --- ipc -----------------------------------------------------------------------------------------------------------
MAX_DATA_FRAME_BYTES = 64 * KIB  # docs/architecture.md
MAX_CONTROL_MESSAGE_BYTES = 64 * KIB  # one message on a control, admin, vault or audit channel (SOCK_SEQPACKET)
STREAM_WINDOW_BYTES = 256 * KIB  # docs/architecture.md: credit per stream
MAX_DESCRIPTORS_PER_MESSAGE = 4
MAX_STREAMS_PER_CHANNEL = 4096
VAULT_SILENT_SECONDS = 3.0  # three of the vault's signs of life missed

# --- ingress -------------------------------------------------------------------------------------------------------
MAX_CONTENT_LENGTH_DIGITS = 15  # below 2^53
MAX_STRANGERS_BODY_BYTES = 64 * KIB  # of a body that is read before its key was looked at; one read of the socket
PIPELINE_BYTES = 64 * KIB  # unread bytes behind the request in flight before reading stops

# --- translators ---------------------------------------------------------------------------------------------------
SMALL_JSON_BYTES = 16 * KIB  # bodies up to here are not counted: at worst 5,461 empty lists, 2 ms
MAX_CHAT_VALUES = 131_072  # commas of a chat body
MAX_EMBEDDINGS_VALUES = 524_288  # OpenAI takes 300,000 tokens a request, each of which may be a number of its own
MAX_EVENT_BYTES = MIB  # one server-sent event; a delta of audio is some 100 KiB
EVENT_PIECES_PER_JOIN = 1024  # pieces of an unfinished event are joined in lots of these, so that single bytes don't cost 40 each
MAX_ANSWER_OBJECTS = 65_536  # `{` of a whole answer, some 200 bytes of memory each; 2,048 embeddings are as many objects
MAX_MODEL_NAME_CHARS = 256
MAX_FUNCTION_NAME_CHARS = 128  # OpenAI documents 64; Anthropic and Gemini 128
MAX_IDENTIFIER_CHARS = 512  # `user`, `prompt_cache_key` and other names that clients make up
MAX_KEYWORD_CHARS = 64  # values of open enumerations (`service_tier`), which grow faster than gateways are updated
MAX_CHOICES = 128  # OpenAI: `n`
MAX_TOOLS = 128  # OpenAI: `tools`, `functions`
MAX_STOP_SEQUENCES = 4  # OpenAI: `stop`
MAX_TOOL_ARGUMENTS_BYTES = 4 * MIB  # of one call in a stream, held until it is known to be JSON; a large file written by a tool is some 100 KiB
MAX_METADATA_ENTRIES = 16  # OpenAI: `metadata`, with keys of 64 and values of 512 characters
MAX_LOGIT_BIASES = 1024
MAX_RESPONSES_EVENT_BYTES = 8 * MIB  # OpenAI responses: the last event repeats the whole answer; one generated picture is 2 to 4 MiB of base64
MAX_GEMINI_STOP_SEQUENCES = 5  # Gemini: `stopSequences`
MAX_CITATIONS = 1024  # sources of one choice; answers with web searches have some dozens
MAX_EMBEDDING_INPUTS = 2048  # OpenAI: `input`
MAX_EMBEDDING_DIMENSIONS = 65_536  # no model has more than 12,288
MAX_FORM_PARTS = 64  # fields of a form; a transcription has 14 kinds, some of them repeated
MAX_ANSWER_PARTS = 1024  # OpenAI chat: texts, thoughts and tool calls of one choice; agents make some ten calls at once
MAX_TOKEN_COUNT = 2**53 - 1  # of one answer, as a provider reports it: what JSON's numbers hold exactly

# --- providers -----------------------------------------------------------------------------------------------------
MAX_HOST_CHARS = 253  # RFC 1035 §3.1: 255 octets on the wire

# --- egress --------------------------------------------------------------------------------------------------------
MAX_WHOLE_ANSWER_BYTES = 32 * MIB  # an embeddings answer of 2,048 inputs x 3,072 floats is 25 MiB
MAX_ERROR_BODY_BYTES = 64 * KIB  # of a provider's error, which is parsed and rewritten
MAX_ADMISSION_ENTRIES = 100_000  # keys and providers whose limits egress counts at once
MAX_REROUTES = 4  # of one call; there are as many dialects to write a conversation in, and it may come back to one
MAX_COOLDOWNS = 1024  # credentials and models that are not called for a while, some 300 bytes each
COOLDOWNS_PER_PACKET = 64  # egress tells the vault of so many a second
MODEL_COOLDOWN_SECONDS = 43_200.0  # after 404; nothing cools longer
TIMER_EARLY_SECONDS = 0.01  # a timer of the loop, which counts in whole milliseconds, may run this much before its time
POLICY_ACK_SECONDS = 1.0  # a revocation is in force on every worker within it, or the command says on which it is
MIN_GUARDED_SECRET_BYTES = 8  # a shorter secret would be "found" in ordinary text; such a credential is refused
MAX_DIALS_PER_SECOND = 1024.0  # what the dialer takes from egress, and egress from the dialer; egress asks at half of it
MAX_PENDING_DIALS = 256

# --- vault ---------------------------------------------------------------------------------------------------------
MAX_MASTER_KEY_FILE_BYTES = 256  # 64 hexadecimal digits and white space
MAX_CLIENT_KEYS = 100_000  # 2.5 s to open and read at the start, 1,600 packets of policy
MAX_CREDENTIAL_SECRET_BYTES = 8 * KIB  # nginx's limit of one header line
MAX_LABEL_CHARS = 128  # name of a client key, label of a credential
MAX_MODEL_CHARS = 200  # a public model name, as in the configuration
MAX_KEY_MODELS = 64  # model names in one client key
MAX_KEY_NETWORKS = 64  # CIDR blocks in one client key
MAX_BLOCKED_NETWORKS = 1024  # CIDR blocks in the rules for everybody; 43 bytes each still fit one packet
MAX_DISABLED_PROVIDERS = 64
MAX_FEED_BACKLOG = 1024  # changes that wait for egress; more, and it gets a new snapshot

# --- audit ---------------------------------------------------------------------------------------------------------
MAX_PENDING_AUDIT_BYTES = 2 * MIB  # lines that wait for the write under way; above, the auditor stops reading, and senders get EAGAIN
MAX_CHECKPOINT_BYTES = 8 * KIB  # a signed note: ours has 2 KiB at 2^32 entries; the rest is for witnesses' signatures
MAX_CHECKPOINT_RECORD_BYTES = 512 * KIB  # a note and 8 bytes in base64 for each of MAX_RESUMED_ENTRIES

# --- supervisor ----------------------------------------------------------------------------------------------------
MAX_WORKERS = 32  # processes that serve; more than the cores of one machine helps nobody
MAX_DRAINING_GENERATIONS = 4  # docs/architecture.md: old workers that still finish their streams
MAX_LISTENERS = 8  # listening sockets of one gateway (addresses in `server.listen`)
MAX_BOOT_BYTES = 4 * MIB  # boot record or settings; thousands of models are well below 1 MiB
WORKER_NUMBERS = MAX_WORKERS * (1 + MAX_DRAINING_GENERATIONS)
MAX_START_DEATHS = 5  # docs/architecture.md: before the first READY
LOADER_SECONDS = 10.0  # reading and checking the configuration
MAX_LOADER_LINE_BYTES = 1500  # of what the loader says about an unusable configuration

# --- config, cli ---------------------------------------------------------------------------------------------------
MAX_CONFIG_BYTES = MIB  # a thousand providers fit; nginx and HAProxy files of that size are generated ones
MAX_CONFIG_NAME_CHARS = 200  # a model's or an alert's name
MAX_ROUTE_TARGETS = 64  # that one public name can lead to, its fallbacks included; what was tried travels with a call
MAX_COMMAND_LINE_BYTES = 16 * KIB  # one request on the control socket
MAX_REPLY_LINE_BYTES = 512 * KIB  # one answer: a page of 64 keys with their models and networks
CONTROL_REQUEST_SECONDS = 60.0  # from a request on the control socket to its answer; a reload that has to turn back takes up to 50
