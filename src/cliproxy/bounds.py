"""Every size, count and time bound, with its unit and where the number comes from. No bound has a default elsewhere.

Sections belong to the module that they name; add yours there.
"""

KIB = 1024
MIB = 1024 * 1024

# --- ipc -----------------------------------------------------------------------------------------------------------
MAX_DATA_FRAME_BYTES = 64 * KIB  # DESIGN §2
MAX_FRAME_BYTES = 128 * KIB  # a HEAD with an inline body of one DATA frame, and its fields
MAX_CONTROL_MESSAGE_BYTES = 64 * KIB  # one message on a control, admin, vault or audit channel (SOCK_SEQPACKET)
STREAM_WINDOW_BYTES = 256 * KIB  # DESIGN §2: credit per stream
STREAM_GRANT_BYTES = 64 * KIB  # credit goes back in pieces of at least this
MAX_DESCRIPTORS_PER_MESSAGE = 4
MAX_STREAMS_PER_CHANNEL = 4096
CHANNEL_HIGH_WATER_BYTES = 1 * MIB  # unsent bytes above which upstream reading pauses
POLICY_GRACE_SECONDS = 30.0  # DESIGN §2: known keys go on that long when the policy feed is silent
MAX_WORKER_BACKLOG_BYTES = 32 * MIB  # unsent bytes towards egress above which a worker answers 503 instead of queueing
ORPHAN_SECONDS = 45.0  # without a channel that a process needs; longer than the supervisor's longest back-off (30 s)
VAULT_SILENT_SECONDS = 3.0  # three of the vault's signs of life missed
MAX_CHANNEL_BACKLOG_BYTES = 64 * MIB  # unsent bytes above which the peer counts as dead and the channel is closed

# --- dataplane -----------------------------------------------------------------------------------------------------
DRAIN_POLL_SECONDS = 0.05  # how often a draining process looks whether it is done
READY_POLL_SECONDS = 0.01  # how often a starting worker looks whether the others serve
ACCEPT_ANYWAY_SECONDS = 2.0  # a starting worker accepts connections after this even when the others do not serve, to say so (503, /healthz)
MAX_QUERY_PARAMETERS = 32  # of Gemini's paths; its SDKs send two
MAX_QUERY_VALUE_BYTES = 256  # percent-encoded; a key of 53 bytes has 159 at most
MAX_SESSION_CHARS = 256  # of `x-session-id`; longer ones are no session
MAX_HEADER_VALUE_CHARS = 256  # of what we put into an answer's header; MAX_MODEL_NAME_CHARS
MAX_WARNINGS = 16  # `Warning` headers of one answer, one for each field that was left out
MAX_KEPT_REQUEST_BYTES = 128 * MIB  # bodies of requests that a worker keeps decoded, for a reroute or until their answer is translated; 503 above
MAX_COLLECTED_BYTES = 128 * MIB  # whole answers that a worker holds until it can translate them; 4 of the largest
MAX_TALLY_ENTRIES = 256  # addresses that a worker's authentication tally tells apart in one second

# --- ingress -------------------------------------------------------------------------------------------------------
MAX_CHUNK_LINE_BYTES = 10  # eight hexadecimal digits and CRLF; a longer size is an overflow attempt (CVE-2013-2028)
MAX_CHUNKS_PER_BODY = 16 * KIB  # a Python turn per chunk: 16 ms of CPU; real clients send 8 KiB or more a chunk
MAX_CONTENT_LENGTH_DIGITS = 15  # below 2^53
MAX_REPEATED_HEAD_BYTES = 4 * KIB  # of a head that a connection keeps to recognise its repetition; SDKs send below 1.5 KiB
BODY_PIECES_PER_JOIN = 1024  # pieces of a body are joined in lots of these, so that single bytes don't cost 40 each
MAX_STRANGERS_BODY_BYTES = 64 * KIB  # of a body that is read before its key was looked at; one read of the socket
PIPELINE_BYTES = 64 * KIB  # unread bytes behind the request in flight before reading stops
MAX_UNREAD_BYTES = 64 * MIB  # answered to clients of a worker that do not read, together; a share each
MAX_UNSENT_BYTES = 1 * MIB  # held for a client that does not read, then the connection is aborted; 4 stream windows
WRITE_HIGH_WATER_BYTES = 64 * KIB  # asyncio's default
MAX_HELD_BODY_BYTES = 256 * MIB  # bodies of all connections of a worker together; 503 above
MIN_READER_BYTES = 4 * KIB  # a paused client that takes less than this in `stalled_reader_seconds` is aborted
LINGER_SECONDS = 2.0  # after an error answer input is discarded this long, so that a reset does not overtake the answer (RFC 9112 §9.6)
LINGER_BYTES = 16 * MIB
DRAIN_IDLE_SECONDS = 1.0  # an idle connection of a draining worker may still send one request, which is answered with Connection: close
ACCEPTS_PER_TURN = 8  # connections; a burst is shared among the workers
INGRESS_SWEEP_SECONDS = 1.0  # DESIGN §7: one sweep over the deadlines each second

# --- limits --------------------------------------------------------------------------------------------------------
SHARED_RATE_SETS = 65_536  # address buckets of a machine: 65,536 sets of 4 ways of 16 bytes are 4 MiB
SHARED_RATE_WAYS = 4

# --- translators ---------------------------------------------------------------------------------------------------
SMALL_JSON_BYTES = 16 * KIB  # bodies up to here are not counted: at worst 5,461 empty lists, 2 ms
MAX_JSON_CONTAINERS = 32_768  # arrays and objects of one body; 1,000 messages with 128 large tools have 10,000. 0.25 µs and 72 bytes each
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
MAX_ANTHROPIC_TOOLS = 1024  # Anthropic names no bound; clients that connect tool servers send some hundreds
MAX_ANTHROPIC_STOP_SEQUENCES = 8191  # Bedrock's bound for Anthropic's models
MAX_METADATA_ENTRIES = 16  # OpenAI: `metadata`, with keys of 64 and values of 512 characters
MAX_LOGIT_BIASES = 1024
MAX_RESPONSES_INCLUDES = 32  # OpenAI responses: `include`, of which the vendor documents eight
MAX_RESPONSES_EVENT_BYTES = 8 * MIB  # OpenAI responses: the last event repeats the whole answer; one generated picture is 2 to 4 MiB of base64
MAX_WRITTEN_RESPONSE_BYTES = 8 * MIB  # OpenAI responses: output that a translated stream keeps for its last event; 128,000 tokens are 0.5 MiB, a picture 4
MAX_GEMINI_FUNCTIONS = 512  # Gemini: `functionDeclarations` of one request
MAX_GEMINI_STOP_SEQUENCES = 5  # Gemini: `stopSequences`
MAX_CITATIONS = 1024  # sources of one choice; answers with web searches have some dozens
MAX_CITED_TEXT_BYTES = 256 * KIB  # of a text whose sources' places are counted over from bytes to characters; each count reads it
MAX_HELD_CHARS = 4 * MIB  # of tool calls and signed thoughts under way in one stream, for a client whose dialect tells them whole
MAX_EMBEDDING_INPUTS = 2048  # OpenAI: `input`
MAX_EMBEDDING_DIMENSIONS = 65_536  # no model has more than 12,288
MAX_FORM_PARTS = 64  # fields of a form; a transcription has 14 kinds, some of them repeated
MAX_PART_HEAD_BYTES = 2 * KIB  # a disposition with a long file name and a media type
MAX_FORM_VALUE_BYTES = 64 * KIB  # of a field that is no file; OpenAI's prompts have 224 tokens, speakers' samples are data URLs of seconds
MAX_IMAGE_PROMPT_CHARS = 32_000  # OpenAI: gpt-image
MAX_SPEECH_INPUT_CHARS = 4096  # OpenAI: `input`
MAX_ANSWER_PARTS = 1024  # OpenAI chat: texts, thoughts and tool calls of one choice; agents make some ten calls at once
MAX_KEPT_CHARS = 8 * MIB  # OpenAI chat: of one stream's tool calls until they are whole, and of what waits for them; a large source file is 1 MiB
ARGUMENT_PIECES_PER_JOIN = 1024  # pieces of a tool call's JSON are joined in lots of these, as those of events are
MAX_TOKEN_COUNT = 2**53 - 1  # of one answer, as a provider reports it: what JSON's numbers hold exactly

# --- providers -----------------------------------------------------------------------------------------------------
MAX_BASE_URL_CHARS = 2048
MAX_HOST_CHARS = 253  # RFC 1035 §3.1: 255 octets on the wire
MAX_MODEL_HEADS = 128  # request heads with a model's name in their path that egress keeps for one credential, some 500 bytes each

# --- egress --------------------------------------------------------------------------------------------------------
MAX_WHOLE_ANSWER_BYTES = 32 * MIB  # an embeddings answer of 2,048 inputs x 3,072 floats is 25 MiB
MAX_ERROR_BODY_BYTES = 64 * KIB  # of a provider's error, which is parsed and rewritten
MAX_HELD_ANSWER_BYTES = 256 * MIB  # whole answers that egress holds, of all calls together; 503 above. 60 of the largest took it to 1.9 GB
ANSWER_PIECES_PER_JOIN = 1024  # pieces of a whole answer are joined in lots of these: 32 MiB in reads of two bytes were 900 MB
MAX_REQUEST_BYTES_PER_WORKER = 128 * MIB  # bodies that egress holds for one worker until they are whole
MAX_ADMISSION_ENTRIES = 100_000  # keys and providers whose limits egress counts at once
MAX_DEBT_MINUTES = 60.0  # of a token limit: what a provider says a call used keeps a key waiting no longer
MAX_REQUEST_ID_CHARS = 64  # `x-request-id`, which a worker makes up; ours have 24
MAX_ADDRESS_CHARS = 45  # an IPv6 address with a dotted quad; the kernel spells no longer one
AUDIT_AGAIN_SECONDS = 0.005  # until intents that the auditor's full queue did not take are offered again
MAX_BYTES_AWAITING_AUDIT = 64 * MIB  # of request bodies whose intents the auditor has not taken; more, and they are refused at once
MAX_KEPT_BODY_BYTES = 128 * MIB  # of bodies kept until their answers begin, so that they can be sent elsewhere; what has no room is sent once
MAX_REROUTED_CALLS = 4096  # calls that a worker was asked to write anew and has not sent again
MAX_REROUTES = 4  # of one call; there are as many dialects to write a conversation in, and it may come back to one
REROUTE_SECONDS = 10.0  # for it to do so and still count as the same call; writing one anew takes milliseconds
MAX_COOLDOWNS = 1024  # credentials and models that are not called for a while, some 300 bytes each
COOLDOWNS_PER_PACKET = 64  # egress tells the vault of so many a second
CREDENTIAL_COOLDOWN_SECONDS = 1800.0  # after 401, 402, 403
MODEL_COOLDOWN_SECONDS = 43_200.0  # after 404; nothing cools longer
RATE_COOLDOWN_FIRST_SECONDS = 1.0  # after 429 without a time, doubling
RATE_COOLDOWN_LONGEST_SECONDS = 1800.0
AUDIT_POLL_SECONDS = 0.05  # how often egress takes in the auditor's acknowledgements
MAX_VAULT_MESSAGES_PER_SECOND = 20_000  # a snapshot of a million keys is 16,000 packets
TIMER_EARLY_SECONDS = 0.01  # a timer of the loop, which counts in whole milliseconds, may run this much before its time
POLICY_ACK_SECONDS = 1.0  # a revocation is in force on every worker within it, or the command says on which it is
MAX_ESTIMATE_FLOOR_TOKENS = 4096  # prompt tokens reserved at least, from the body's length
MAX_ECHO_EVENTS = 1024  # delta events of one streamed echo, all choices together
MAX_ECHO_CHARS = 4 * MIB  # of one echo, all choices together: some 10 ms of egress, in which nobody else is served
MAX_ECHO_FLOATS = 65_536  # numbers in one echoed embeddings answer: some 20 ms
MAX_OUTCOMES_WAITING = 16384  # outcomes that the auditor has not taken; more, and no new call is
MIN_GUARDED_SECRET_BYTES = 8  # a shorter secret would be "found" in ordinary text; such a credential is refused
MAX_RESPONSE_HEAD_BYTES = 64 * KIB  # nginx allows 4 to 8 KiB, curl 300 KiB; providers send some 3 KiB
MAX_RESPONSE_HEADERS = 128
MAX_RESPONSE_TRAILERS = 16
MAX_INTERIM_RESPONSES = 8  # 1xx before the answer
MAX_RESPONSE_BYTES = 64 * MIB  # on the wire; an embeddings answer of 2,048 inputs is 60 MB
MAX_ERROR_BODY_BYTES = 64 * KIB  # of a provider's error; what is longer is not read
MAX_ERROR_MESSAGE_CHARS = 512
MAX_ERROR_DETAILS = 8  # of a provider's error that are looked at; Gemini sends two or three
MAX_EVENT_KINDS = 16  # kinds of event of AWS's event stream whose headers are recognised; Bedrock has six
MAX_EVENT_HEADER_BYTES = 4 * KIB  # headers of one message of AWS's event stream, which allows 128 KiB; Bedrock sends three of 80 bytes together
MAX_KEPT_HEADER_BYTES = 512  # one response header that we pass on
MAX_RETRY_AFTER_SECONDS = 86400
MAX_JOINED_REQUEST_BYTES = 64 * KIB  # head and body are copied into one buffer up to here
MAX_CONNECTIONS_PER_PROVIDER = 512
MAX_UPSTREAM_CONNECTIONS = 2048  # of all providers; half of a common descriptor limit of 4096
MAX_WAITING_PER_PROVIDER = 1024  # calls that wait for a connection
MAX_DIALS_PER_SECOND = 1024.0  # what the dialer takes from egress, and egress from the dialer; egress asks at half of it
DIAL_AGAIN_SECONDS = 0.02  # until a dialer that took no more questions is asked again
MAX_PENDING_DIALS = 256
UPSTREAM_IDLE_SECONDS = 55.0  # nginx and most load balancers close after 60 to 75; be first
SWEEP_SECONDS = 1.0  # deadlines are looked at this often
MAX_TUNNEL_HEAD_BYTES = 8 * KIB  # a proxy's answer to CONNECT; curl takes 100 KiB, real ones have a few hundred bytes

# --- dialer --------------------------------------------------------------------------------------------------------
DIALER_THREADS = 8  # names resolved at a time; the rest waits within its deadline
MAX_ADDRESSES_PER_NAME = 64
MAX_CONNECT_ATTEMPTS = 8  # addresses tried for one connection
CONNECT_STAGGER_SECONDS = 0.25  # RFC 8305 §5: the recommended delay between attempts
MAX_DENIED_ADDRESSES = 256  # forbidden addresses counted apart until they are in the log

# --- vault ---------------------------------------------------------------------------------------------------------
MAX_SYMLINKS_IN_PATH = 8  # links that root made, on the way to a file of ours; Linux itself gives up at 40
MAX_ENVELOPE_BYTES = MIB  # one sealed record
MASTER_KEY_BYTES = 32  # AES-256
MAX_MASTER_KEY_FILE_BYTES = 256  # 64 hexadecimal digits and white space
MAX_VAULT_IDENTITY_BYTES = 512  # auths/vault.pub: one line
MAX_CLIENT_KEYS = 100_000  # 2.5 s to open and read at the start, 1,600 packets of policy
MAX_CREDENTIALS = 1000
MAX_CREDENTIAL_SECRET_BYTES = 8 * KIB  # nginx's limit of one header line
MAX_LABEL_CHARS = 128  # name of a client key, label of a credential
MAX_MODEL_CHARS = 200  # a public model name, as in the configuration
MAX_KEY_MODELS = 64  # model names in one client key
MAX_KEY_NETWORKS = 64  # CIDR blocks in one client key
MAX_BLOCKED_NETWORKS = 1024  # CIDR blocks in the rules for everybody; 43 bytes each still fit one packet
MAX_DISABLED_PROVIDERS = 64
MAX_KEY_RECORD_BYTES = 16 * KIB  # one client key with its models and networks
MAX_PACKED_BYTES = 40 * KIB  # keys or list items in one packet: with its frame well below MAX_CONTROL_MESSAGE_BYTES
MAX_FEED_BACKLOG = 1024  # changes that wait for egress; more, and it gets a new snapshot
MERKLE_BUCKETS = 1024  # 100,000 records give 100 to a bucket: 16 µs to change one
REVOKE_WAIT_SECONDS = 2.0  # egress answers after one second with the workers that had acknowledged (DESIGN §2); a commit on a slow disk comes before that
VAULT_ALIVE_SECONDS = 1.0
LAST_USE_FLUSH_SECONDS = 60.0  # last-use times are written once a minute, not per call
COOLDOWN_FLUSH_SECONDS = 10.0  # what kill -9 of everything loses of cooldowns; each writing is two lines in the log
ADMIN_REQUESTS_PER_SECOND = 200.0  # the control socket passes at most as many
EGRESS_MESSAGES_PER_SECOND = 200.0  # hellos, acknowledgements, last use: a handful in normal times

# --- audit ---------------------------------------------------------------------------------------------------------
MAX_AUDIT_TEXT = 512  # characters in one text field of an event
MAX_UNACKNOWLEDGED_BYTES = 4 * MIB  # what a sender keeps of what the auditor has not made durable yet, to send it again to the next auditor
MAX_AUDIT_LINE_BYTES = 64 * KIB  # an event of nine texts of 512 characters, six bytes each where escaped, is 28 KiB
MAX_PENDING_AUDIT_BYTES = 2 * MIB  # lines that wait for the write under way; above, the auditor stops reading, and senders get EAGAIN
MAX_BATCH_ENTRIES = 4096  # lines that wait, likewise; one packet more may come on top
MAX_UNCOVERED_ENTRIES = 4096  # entries without a checkpoint before one is due at once
MAX_RESUMED_ENTRIES = 32 * KIB  # entries without a checkpoint at a start: two batches of the smallest events; more means that checkpoints are missing
MAX_CHECKPOINT_BYTES = 8 * KIB  # a signed note: ours has 2 KiB at 2^32 entries; the rest is for witnesses' signatures
MAX_CHECKPOINT_RECORD_BYTES = 512 * KIB  # a note and 8 bytes in base64 for each of MAX_RESUMED_ENTRIES
AUDIT_SYNC_SECONDS = 0.02  # DESIGN §3: between two fdatasyncs when nobody waits for one
AUDIT_CHECKPOINT_SECONDS = 1.0  # entries are durable before that; a checkpoint costs a signature and 400 bytes
AUDIT_RETRY_SECONDS = 0.25  # between two tries to write when the disk is full
AUDIT_SUMMARY_SECONDS = 60.0  # between two lines about what the strangers' quota had no room for
AUDIT_WORKER_QUOTA_FACTOR = 16  # what workers report of recognised clients may fill this many strangers' quotas; the calls themselves come from egress
AUDIT_QUERIES_PER_SECOND = 200.0  # admin's questions

# --- supervisor ----------------------------------------------------------------------------------------------------
MAX_WORKERS = 32  # processes that serve; more than the cores of one machine helps nobody
MAX_DRAINING_GENERATIONS = 4  # DESIGN §2: old workers that still finish their streams
MAX_LISTENERS = 8  # listening sockets of one gateway (addresses in `server.listen`)
MAX_BOOT_BYTES = 4 * MIB  # boot record or settings; thousands of models are well below 1 MiB
WORKER_NUMBERS = MAX_WORKERS * (1 + MAX_DRAINING_GENERATIONS)
MAX_START_DEATHS = 5  # DESIGN §2: before the first READY
START_SECONDS = 30.0  # from spawn to READY; ten times what a busy one-core machine needs
RESTART_FIRST_SECONDS = 0.1  # recovers well within 2 s
RESTART_LONGEST_SECONDS = 30.0  # DESIGN §2
STABLE_SECONDS = 30.0  # served that long: the next death is the first again
STOP_SECONDS = 5.0  # from STOP to SIGKILL
STOP_NOW_SECONDS = 1.0  # the same after a second signal
DRAIN_GRACE_SECONDS = 2.0  # beyond the drain timeout, for the worker to end by itself
LOADER_SECONDS = 10.0  # reading and checking the configuration
MAX_LOADER_LINE_BYTES = 1500  # of what the loader says about an unusable configuration
PREPARE_SECONDS = 10.0  # from PREPARE to the last PREPARED; from COMMIT to new workers READY
MAX_PENDING_EVENTS = 1024  # of the supervisor, while the auditor is away
LISTEN_BACKLOG = 1024  # the kernel's own cap (net.core.somaxconn) is 4096
CONTROL_BACKLOG = 16
PORT_RELEASE_SECONDS = 1.0  # for the processes of a killed gateway to let go of the port
MIN_DESCRIPTORS = 1024  # of the hard limit
MAX_DESCRIPTORS = 65536  # what we raise the soft limit to; two for each of 4096 connections, and room

# --- integrity -----------------------------------------------------------------------------------------------------
MAX_START_HOOK_BYTES = 64 * KIB  # a `.pth` file; known ones have 15 to 151 bytes
MAX_PACKAGE_RECORD_BYTES = 4 * MIB  # a distribution's RECORD; of the large ones here 100 KiB

# --- config, cli ---------------------------------------------------------------------------------------------------
MAX_CONFIG_BYTES = MIB  # a thousand providers fit; nginx and HAProxy files of that size are generated ones
MAX_CONFIG_NODES = 100_000  # keys and values after aliases are expanded: no "billion laughs"
MAX_CONFIG_DEPTH = 16  # the schema needs 6
MAX_CONFIG_NAME_CHARS = 200  # a model's or an alert's name
MAX_WILDCARDS = 4  # in one pattern of model names: a pattern is tried on names that clients send, and costs more with each
MAX_ROUTE_TARGETS = 64  # that one public name can lead to, its fallbacks included; what was tried travels with a call
MAX_ROUTING_STEPS = 250_000  # targets and names behind all public names together: about 0.5 KiB and 5 us each, in every worker and in egress
MAX_WILDCARD_ROUTES = 1024  # routes of names that only a wildcard knows, kept ready, about 1 KiB each
MAX_NEAR_NAMES = 3  # names told to a client that asked for one that there is not
MAX_NEAR_NAMES_SEEN = 2048  # names that are looked at for these, 1 us each
MAX_NEAR_NAMES_COMPARED = 32  # and compared letter by letter, some 20 us each
MAX_COMMAND_LINE_BYTES = 16 * KIB  # one request on the control socket
MAX_REPLY_LINE_BYTES = 512 * KIB  # one answer: a page of 64 keys with their models and networks
MAX_CONTROL_CONNECTIONS = 16  # commands at once on the control socket
CONTROL_IDLE_SECONDS = 30.0  # a connection on the control socket that asks nothing
CONTROL_REQUEST_SECONDS = 60.0  # from a request on the control socket to its answer; a reload that has to turn back takes up to 50
PEER_ANSWER_SECONDS = 20.0  # from admin's question to the vault's or the auditor's answer
CONTROL_REQUESTS_PER_SECOND = 50.0  # of all connections of the control socket together; one may cost the vault two messages
MAX_ADMIN_ANSWERS_PER_SECOND = 400.0  # of the vault or the auditor to admin; twice what it may ask
STATUS_WAIT_SECONDS = 2.0  # `status` says that a peer is away when it does not answer within this time
COMMAND_START_SECONDS = 30.0  # until the processes that a command starts for itself are ready; START_SECONDS of a child
COMMAND_LINGER_SECONDS = 30.0  # a gateway that was started for commands alone waits this long for the first one
