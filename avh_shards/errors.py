"""Errors that are the user's to mend, each in one sentence; which of them may pass by themselves."""

import dataclasses
import errno

RETRIED = ("none", "passing", "all")  # failures that a restarted run tries again (--retry_failed)
# Of the machine, a mount or the network: a clip's own content gives others. EPERM is not among them: it is -1, which
# FFmpeg's decoders return for faults of all kinds.
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
    """A mistake of the user: which file or flag, what is wrong, what to do."""


class ClipError(UserError):
    """A clip that cannot be used: the stage at which that showed, and the reason in one sentence.

    `passing` says that the reason may be gone when the clip is tried again: a file that is not there yet, say.
    """

    def __init__(self, stage: str, reason: str, passing: bool = False):
        super().__init__(reason)
        self.stage, self.reason, self.passing = stage, reason, passing

    def __reduce__(self):
        return ClipError, (self.stage, self.reason, self.passing)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A clip of the list that is in no shard, and why."""

    path: str
    stage: str
    reason: str
    passing: bool = False  # the reason may be gone when the clip is tried again

    def retried(self, kind: str) -> bool:
        """Whether a run that retries failures of a kind (of RETRIED) tries the clip again."""
        return kind == "all" or (kind == "passing" and self.passing)


def is_passing(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is of the machine and not of the clip's file."""
    while error is not None:
        memory = isinstance(error, MemoryError) or getattr(error, "code", None) == OPENCV_NO_MEMORY
        if memory or getattr(error, "errno", None) in PASSING_ERRORS or getattr(error, "passing", False):
            return True
        error = error.__cause__ or error.__context__
    return False
