"""Errors that a user can fix: one base class, and one subclass for each cause.

The command line prints the message of a `RecgritError` in a panel and exits with code 2. Any other
exception is a bug in recgrit and shows its traceback.
"""


class RecgritError(Exception):
    """Base class of errors that a user can fix.

    The message says what was expected, what was found, where, and what to do.
    """


class ConfigError(RecgritError):
    """A setting is unknown, has the wrong type, or contradicts another."""


class DataError(RecgritError):
    """An input file is missing, malformed, or empty after filtering."""


class AmbiguousDatesError(DataError):
    """Dates can be read with the month first or with the day first.

    Args:
        question: Text that names the ambiguous dates.
        advice: Text that says which setting resolves the ambiguity.
        formats: Formats that the dates can have, as values of ``data.table.time_format``.
    """

    def __init__(self, question: str, advice: str, formats: tuple[str, ...]) -> None:
        super().__init__(f"{question} {advice}")
        self.question, self.formats = question, formats


class ArtifactError(RecgritError):
    """An artifact is missing, damaged, too new, built from another parent, or not writable."""


class NewerSchemaError(ArtifactError):
    """A newer recgrit wrote this artifact, so it can be neither read nor overwritten."""


class ReplacedError(ArtifactError):
    """An artifact was replaced by another one after it was opened."""


class EncoderError(RecgritError):
    """An item encoder or its weights are not available on this machine."""


class TrainingError(RecgritError):
    """Training cannot continue, for example because the loss is no longer finite."""


class TrackingError(RecgritError):
    """The experiment tracker cannot be reached or refuses a run."""


class EngineError(RecgritError):
    """Work that a stage gave to its engine failed, or the engine's cluster cannot be reached."""


class MissingExtraError(RecgritError, ModuleNotFoundError):
    """A part of recgrit needs packages that are not installed."""
