"""Errors for the user to fix, each described in one sentence, and which of them a retry may resolve."""

import dataclasses
import errno

RETRIED = ("none", "passing", "all")  # which failures a restarted run retries (--retry_failed)
# Errors of the machine, a mount or the network; a clip's content causes others. EPERM is left out: FFmpeg's decoders
# return its negative, -1, for faults of all kinds.
PASSING_ERRORS = {
    getattr(errno, name)
    for name in (
        *("ENOENT", "EACCES", "EIO", "ESTALE", "EREMOTEIO", "ENODEV", "ENXIO", "EBUSY", "EAGAIN", "EINTR"),
        *("ENOMEM", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN", "ECONNRESET"),
        *("ECONNREFUSED", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    )
}
OPENCV_NO_MEMORY = -4  # cv::Error::StsNoMem


class UserError(ValueError):
    """A mistake of the user; the message names the file or flag, what is wrong and what to do."""


class ClipError(UserError):
    """A clip that cannot be used.

    Attributes:
      stage: the stage at which the clip failed.
      reason: what is wrong, in one sentence.
      passing: whether a retry may succeed, for example because a file does not exist yet.
    """

    def __init__(self, stage: str, reason: str, passing: bool = False):
        super().__init__(reason)
        self.stage, self.reason, self.passing = stage, reason, passing

    def __reduce__(self):
        return ClipError, (self.stage, self.reason, self.passing)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A listed clip that is in no shard, with the stage at which it failed and the reason."""

    path: str
    stage: str
    reason: str
    passing: bool = False  # whether a retry may succeed

    def retried(self, kind: str) -> bool:
        """Returns whether a run with --retry_failed=`kind`, one of RETRIED, retries the clip."""
        return kind == "all" or (kind == "passing" and self.passing)


def is_passing(error: BaseException | None) -> bool:
    """Returns whether an error, or an error in its chain of causes, comes from the machine and not from the clip."""
    while error is not None:
        memory = isinstance(error, MemoryError) or getattr(error, "code", None) == OPENCV_NO_MEMORY
        if memory or getattr(error, "errno", None) in PASSING_ERRORS or getattr(error, "passing", False):
            return True
        error = error.__cause__ or error.__context__
    return False
