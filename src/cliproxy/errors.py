"""Every error that crosses a module's edge, in one tree that says whose fault it was.

    CliproxyError
    ├── ClientError              the client's fault: an HTTP status, a code, the field
    │   ├── FramingError         broken or ambiguous HTTP; the connection is closed after it
    │   ├── NotAuthenticated     401, one uniform body whatever the reason
    │   ├── NotPermitted         403: address, model, network
    │   ├── NotFound             404: route or model
    │   ├── SchemaError          400: the body is not what the schema says
    │   │   └── UnsupportedFeature   400: valid, but the target cannot express it
    │   └── RateLimited          429, with the seconds to wait
    │       └── ProviderLimited  by a limit of the provider's, so another provider may take it
    ├── UpstreamError            the provider's fault: 502 or 504
    │   ├── ProviderRefusal      the provider answered with an error; mapped to 400, 404, 413, 429, 502 or 504
    │   └── ForbiddenAddress     a provider's name leads where the dialer does not go
    ├── Unavailable              our own trouble: 503, never 401
    │   └── ForeignOrigin        a credential was about to go where it is not sealed for
    ├── ConfigError              the operator's fault: file, line, key, cure; exit code 78
    ├── SandboxError             the kernel lacks or refused a lockdown step; exit code 78
    ├── VaultError               the sealed store
    │   ├── EnvelopeError        a record was altered or sealed for another place
    │   ├── TamperedVault        rows swapped, deleted, aged; the file rolled back
    │   └── VaultConflict        the change does not fit the present state (no such id, already revoked)
    ├── AuditError               the log
    │   ├── CorruptLog           names the first bad index
    │   └── NewerLog             written by a newer version
    └── ChannelError             a peer process broke the protocol; the channel is closed

A library's exceptions stop at the module that calls it and come out as one of these. Messages never hold a secret or a prompt.
"""

from __future__ import annotations

EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78  # sysexits.h EX_CONFIG


class CliproxyError(Exception):
    """The root. `str(error)` is one line, fit for an operator or a client."""


class ClientError(CliproxyError):
    """What a client did wrong. `status` is the HTTP status; `code` a stable word; `param` the JSON path of the field, if any."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"
    closes = False

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class FramingError(ClientError):
    """Broken, ambiguous, oversized (413, 431) or too slow (408) HTTP. The connection is closed after the answer."""

    code = "bad_http"
    closes = True


class NotAuthenticated(ClientError):
    """401. The message is the same for a missing, malformed, unknown, expired or revoked key."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"

    def __init__(self) -> None:
        super().__init__("The API key is missing or not valid.")


class NotPermitted(ClientError):
    """403."""

    status = 403
    code = "not_permitted"
    kind = "permission_error"


class NotFound(ClientError):
    """404, for a route or a model."""

    status = 404
    code = "not_found"
    kind = "not_found_error"


class SchemaError(ClientError):
    """400: the body is not what the schema says. `param` names the field (`messages[0].content`)."""


class UnsupportedFeature(SchemaError):
    """400: the request is valid in its dialect, but the target cannot express `param`."""

    code = "unsupported_feature"


class RateLimited(ClientError):
    """429. `retry_after` is in seconds, 0 < retry_after; infinite where waiting does not help."""

    status = 429
    code = "rate_limit_exceeded"
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProviderLimited(RateLimited):
    """429: the configuration's limit for one provider is reached. Another provider may still take the call."""


class UpstreamError(CliproxyError):
    """The provider refused, broke off or answered nonsense (502) or was too slow (504). The message is ours, never the provider's body."""

    kind = "upstream_error"

    def __init__(self, message: str, *, status: int = 502, code: str = "upstream_error") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class ProviderRefusal(UpstreamError):
    """The provider answered with `provider_status`. `status` is what the client gets; `retry_after` in seconds, if the provider said."""

    def __init__(self, message: str, *, status: int, code: str, provider_status: int, retry_after: float | None) -> None:
        super().__init__(message, status=status, code=code)
        self.provider_status = provider_status
        self.retry_after = retry_after


class ForbiddenAddress(UpstreamError):
    """A provider's name leads to `address`, which is not connected to. `reason` is one word (`metadata`, `private`, …)."""

    def __init__(self, address: str, *, reason: str) -> None:
        super().__init__(f"the address {address} is not allowed ({reason})", code="provider_forbidden_address")
        self.address = address
        self.reason = reason


class Unavailable(CliproxyError):
    """503: trouble of our own (no policy, no audit, no egress, draining). Never an excuse for a 401."""

    status = 503
    kind = "unavailable_error"

    def __init__(self, message: str, *, code: str = "unavailable", retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retry_after = retry_after


class ForeignOrigin(Unavailable):
    """A credential is sealed for another origin than the one it was to be used for. Nothing was sent."""

    def __init__(self, credential: str) -> None:
        super().__init__("The provider's credential is enrolled for another origin.", code="credential_origin")
        self.credential = credential


class ConfigError(CliproxyError):
    """What the operator must mend: one line `file:line: key: what is wrong; how to mend it`. The process exits with 78 and has changed nothing."""

    def __init__(self, problem: str, *, cure: str, file: str | None = None, line: int | None = None, key: str | None = None) -> None:
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        what = "" if key is None else f"{key}: "
        super().__init__(f"{where}{what}{problem}; {cure}")
        self.problem = problem
        self.cure = cure
        self.file = file
        self.line = line
        self.key = key


class SandboxError(CliproxyError):
    """A lockdown step is missing in this kernel or was refused by it. One line with the cure; exit code 78."""

    def __init__(self, problem: str, *, cure: str) -> None:
        super().__init__(f"{problem}; {cure}")
        self.problem = problem
        self.cure = cure


class VaultError(CliproxyError):
    """Something about the sealed store."""


class EnvelopeError(VaultError):
    """A sealed record does not open: altered, or sealed under another key or for another place."""


class TamperedVault(VaultError):
    """The store is not the one that was last committed: rows swapped, deleted, aged, or the whole file rolled back."""


class VaultConflict(VaultError):
    """The change does not fit the present state: no such id, name taken, already revoked."""


class AuditError(CliproxyError):
    """Something about the audit log."""


class CorruptLog(AuditError):
    """The log does not match its checkpoints. `index` is the first bad entry (counted from 0)."""

    def __init__(self, problem: str, *, index: int) -> None:
        super().__init__(f"entry {index}: {problem}")
        self.problem = problem
        self.index = index


class PinMismatch(AuditError):
    """The log is not the one, or older than the one, that the vault or the pin has seen: the home, or a part of it, was put back from a copy."""


class NewerLog(AuditError):
    """A newer version wrote the log. Nothing was written to it."""


class ChannelError(CliproxyError):
    """A peer process sent what it may not, or bytes that are no frame. The channel is closed and the event audited."""
