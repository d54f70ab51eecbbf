"""Errors that are the user's to mend, each in one sentence."""


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
