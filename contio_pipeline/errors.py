"""Every exception of the package, each of which says what to do next.

What lives here: the hierarchy and the exit code that each branch means. What never does: raising, logging, I/O.
"""

from __future__ import annotations


class ContioError(Exception):
    """Something a person can act on; its text is one or two sentences: what happened, what to do."""

    exit_code = 1


class ConfigError(ContioError):
    """A setting, an option or a folder is wrong: nothing was started."""

    exit_code = 2


class Cancelled(ContioError):
    """The process was asked to stop while a thread was waiting or working."""


class AccountError(ContioError):
    """The account cannot be used at all until a person acts (consent revoked, refresh token rejected)."""


class CredentialsRefused(AccountError):
    """The token endpoint does not know the application: no account can be used, and no token was used up."""


class ApiError(ContioError):
    """An answer that more tries will not mend.

    Attributes:
        status: the HTTP status, 0 when there was no answer.
        code: the API's own error code, empty when the body was not the API's.
        request_id: what the vendor's support asks for, empty when the answer had none.
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "", request_id: str = "") -> None:
        super().__init__(f"{message} (request_id {request_id})" if request_id else message)
        self.status = status
        self.code = code
        self.request_id = request_id


class NotFound(ApiError):
    """404 in the API's own error shape: deleted, or not visible to this account; the API does not say which."""


class Forbidden(ApiError):
    """403 in the API's own error shape about one object, not about a scope."""


class ScopeMissing(ApiError):
    """The account's consent does not include what this request needs."""


class Unauthorized(ApiError):
    """401 although the access token was just refreshed."""


class Enough(ApiError):
    """As many requests were sent as were asked for at most."""


class Transient(ApiError):
    """An answer, or the lack of one, that another try may mend.

    Attributes:
        retry_after: seconds the server asked to wait, None when it did not say.
    """

    def __init__(self, message: str, *, status: int = 0, retry_after: float | None = None, **about: str) -> None:
        super().__init__(message, status=status, **about)
        self.retry_after = retry_after


class Throttled(Transient):
    """429: every process on the machine holds back."""


class TokensThrottled(Transient):
    """429 of the token endpoint, which has a budget of its own: only refreshes hold back."""


class BrokenAnswer(Transient):
    """A success whose body is not what the API promises (HTML, no `items`, `total` not a number)."""


class TooLarge(BrokenAnswer):
    """More JSON, or more rows, than any answer should have: fewer rows may be asked for."""


class StorageError(ContioError):
    """The warehouse, the documents or the published files could not be used; nothing was half-written."""


class WarehouseBusy(StorageError):
    """Another process writes to the same data folder."""


class NothingPublished(StorageError):
    """There is no current generation to read yet."""
