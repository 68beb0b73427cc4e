"""What goes wrong for a reason the user can mend: one base class, one subclass per cause.

The command line prints the message of a `RecgritError` in one panel and exits with code 2. Any
other exception is a fault of ours and shows its traceback.
"""


class RecgritError(Exception):
    """Base of all errors a user can cause; says what was expected, got, where, and what to do."""


class ConfigError(RecgritError):
    """A setting is unknown, has the wrong type, or contradicts another."""


class DataError(RecgritError):
    """An input file is missing, malformed, or empty after filtering."""


class AmbiguousDatesError(DataError):
    """Dates can be read with the month or the day first.

    Args:
        question: Which dates they are.
        advice: What to set.
        formats: The formats they can have, as ``data.table.time_format`` takes them.
    """

    def __init__(self, question: str, advice: str, formats: tuple[str, ...]) -> None:
        super().__init__(f"{question} {advice}")
        self.question, self.formats = question, formats


class ArtifactError(RecgritError):
    """A stage's output on disk is missing, damaged, too new, or built from another parent."""


class NewerSchemaError(ArtifactError):
    """A newer recgrit wrote this artifact: it can neither be read nor may it be overwritten."""


class ReplacedError(ArtifactError):
    """An artifact was replaced by another one since it was opened."""


class EncoderError(RecgritError):
    """An item encoder or its weights cannot be had on this machine."""


class TrainingError(RecgritError):
    """Training cannot go on, for example because the loss is no longer finite."""


class TrackingError(RecgritError):
    """The experiment tracker cannot be reached or refuses a run."""


class EngineError(RecgritError):
    """Some of a stage's work could not be done, or the cluster for it cannot be reached."""


class MissingExtraError(RecgritError, ModuleNotFoundError):
    """A part of recgrit was asked for whose dependencies are not installed."""
