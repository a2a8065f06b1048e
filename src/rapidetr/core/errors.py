"""Every error that RapiDETR raises on purpose.

RapidetrError
├── ImageError (ValueError)            a picture that cannot be read or used
│   └── ImageMissing (FileNotFoundError)
├── DatasetError (ValueError)          annotations or folders that cannot be used
├── CheckpointError (ValueError)       a weights file that cannot be used
│   ├── CheckpointMissing (FileNotFoundError)
│   ├── KeyMismatch                    parameters missing, left over or of another shape
│   ├── HashMismatch                   the bytes are not the ones that were promised
│   └── UnsafeFile                     the file wants to run code
├── DownloadError (OSError)            the network did not deliver
├── BackendMissing (ImportError)       an optional package is not installed
├── LicenseRefused                     weights whose licence was not accepted
├── ServiceLevelUnmet                  no configuration keeps the promise
├── ConfigError (ValueError)           an argument or a record that contradicts itself
│   └── NotFinite                      a network answered with what is no number
└── NotSupportedYet (NotImplementedError)

Each message says what was expected, what came, and what to do. The command line prints it in one line and exits 2.
"""


class RapidetrError(Exception):
    """Base of everything that RapiDETR raises on purpose."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ImageError(RapidetrError, ValueError):
    """A picture that cannot be read or used; names it and the remedy."""


class ImageMissing(ImageError, FileNotFoundError):
    """A picture, folder or pattern that is not there."""


class DatasetError(RapidetrError, ValueError):
    """Annotations or folders that cannot be used; names file and line."""


class CheckpointError(RapidetrError, ValueError):
    """A weights file that cannot be used."""


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """A weights file that is not there."""


class KeyMismatch(CheckpointError):
    """Parameters that are missing, left over or of another shape; the message lists them."""


class HashMismatch(CheckpointError):
    """The bytes of a file are not the ones that were promised."""


class UnsafeFile(CheckpointError):
    """A file that would run code when loaded; it was not loaded."""


class DownloadError(RapidetrError, OSError):
    """The network did not deliver; names the file, its address, its hash and where to put it by hand."""


class BackendMissing(RapidetrError, ImportError):
    """An optional package is not installed; names the command that installs it."""


class LicenseRefused(RapidetrError):
    """Weights whose licence was not accepted."""


class ServiceLevelUnmet(RapidetrError):
    """No configuration keeps the promise; says by how much."""


class ConfigError(RapidetrError, ValueError):
    """An argument or a record that contradicts itself."""


class NotFinite(ConfigError):
    """A network whose answers are no numbers: precision too low for it, or broken weights."""


class NotSupportedYet(RapidetrError, NotImplementedError):
    """Something that is known and named, but not built yet."""
