"""Each error is also the builtin that people catch, and says its message and nothing else."""

from __future__ import annotations

import pickle

import pytest

from rapidetr.core import errors

PROMISED: dict[str, tuple[type[BaseException], ...]] = {
    "RapidetrError": (Exception,),
    "ImageError": (ValueError,),
    "ImageMissing": (errors.ImageError, ValueError, FileNotFoundError),
    "DatasetError": (ValueError,),
    "CheckpointError": (ValueError,),
    "CheckpointMissing": (errors.CheckpointError, ValueError, FileNotFoundError),
    "KeyMismatch": (errors.CheckpointError, ValueError),
    "HashMismatch": (errors.CheckpointError, ValueError),
    "UnsafeFile": (errors.CheckpointError, ValueError),
    "DownloadError": (OSError,),
    "BackendMissing": (ImportError,),
    "LicenseRefused": (errors.RapidetrError,),
    "ServiceLevelUnmet": (errors.RapidetrError,),
    "ConfigError": (ValueError,),
    "NotFinite": (errors.ConfigError, ValueError),
    "NotSupportedYet": (NotImplementedError,),
}


def test_the_tree_in_the_docstring_names_every_class() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes == set(PROMISED)
    assert errors.__doc__ is not None
    drawn = [line.split("── ")[-1].split()[0] for line in errors.__doc__.splitlines() if "── " in line]
    assert {*drawn, "RapidetrError"} == classes


@pytest.mark.parametrize("name", list(PROMISED))
def test_error_is_what_people_catch_and_says_its_message(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.RapidetrError)
    assert all(issubclass(kind, promised) for promised in PROMISED[name])
    with pytest.raises(PROMISED[name][-1]) as caught:
        raise kind("street.jpg: not there; give another path")
    assert str(caught.value) == "street.jpg: not there; give another path"
    assert str(kind()) == ""
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (kind, str(caught.value))
