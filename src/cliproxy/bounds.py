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
MAX_CHANNEL_BACKLOG_BYTES = 16 * MIB  # unsent bytes before a channel stops taking more

# --- ingress -------------------------------------------------------------------------------------------------------

# --- limits --------------------------------------------------------------------------------------------------------

# --- translators ---------------------------------------------------------------------------------------------------

# --- egress --------------------------------------------------------------------------------------------------------

# --- dialer --------------------------------------------------------------------------------------------------------

# --- vault ---------------------------------------------------------------------------------------------------------

# --- audit ---------------------------------------------------------------------------------------------------------

# --- supervisor ----------------------------------------------------------------------------------------------------

# --- config, cli ---------------------------------------------------------------------------------------------------
