"""How is a person's code imported so that it finds its neighbours and leaves no trace?"""

import functools
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from numgeom.errors import TargetError

_FILE_PREFIX = "numgeom_target_"
_PACKAGE_FOLDER = str(Path(__file__).resolve().parent.parent)


class ImportScope:
    """A folder that comes first in imports while the scope is open.

    While it is open, a name that exists in the folder means the folder's module, even if a module
    of that name was imported from elsewhere before. That one is set aside until the scope closes,
    unless it belongs to Python, to an installed package or to this package.

    What a private scope imports from its folder leaves `sys.modules` when it closes and comes back
    when it opens again. So two scopes with neighbours of the same name never get each other's.

    Args:
        folder: An absolute path.
        private: Whether modules of the folder are hidden while the scope is closed.
    """

    def __init__(self, folder: Path, *, private: bool) -> None:
        self._folder = str(folder)
        self._private = private
        self._neighbours = frozenset(
            entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()
        )
        self._hidden: dict[str, ModuleType] = {}
        self._is_open = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the scope, unless it is open already; close it at the end."""
        if self._is_open:
            yield
            return
        set_aside = self._set_aside_namesakes()
        sys.modules.update(self._hidden)
        tops_before = {_top(name) for name in sys.modules} - {_top(name) for name in self._hidden}
        sys.path.insert(0, self._folder)
        importlib.invalidate_caches()  # a neighbour may be younger than the last look at the folder
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            if self._folder in sys.path:
                sys.path.remove(self._folder)
            leaving = {
                top
                for top in {_top(name) for name in sys.modules} - tops_before
                if self._holds(top)
                and (self._private or top in set_aside or top.startswith(_FILE_PREFIX))
            }
            self._hidden = _remove(leaving)
            sys.modules.update(set_aside)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give the function that opens the scope around each call, for imports inside it."""

        @functools.wraps(function, updated=())
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self.opened():
                return function(*args, **kwargs)

        return inside

    def _set_aside_namesakes(self) -> dict[str, ModuleType]:
        namesakes = {
            top
            for top in self._neighbours & sys.modules.keys()
            if _places(top)
            and not self._holds(top)
            and not any(_is_library(place) for place in _places(top))
        }
        return _remove(namesakes)

    def _holds(self, top: str) -> bool:
        stem = os.path.join(self._folder, top.removeprefix(_FILE_PREFIX))
        places = _places(top)
        return bool(places) and all(
            place.startswith((stem + ".", stem + os.sep)) for place in places
        )


def is_importable_folder(folder: Path) -> bool:
    """Whether `import` looks into the folder anyway; an empty entry of the path means here."""
    return any(os.path.abspath(entry) == str(folder) for entry in sys.path)


def import_file(target: str, file: Path) -> ModuleType:
    """Run a Python file as a module of its own name, without a __pycache__ beside it.

    Args:
        target: The TARGET, for messages.
        file: An absolute path.

    Returns:
        The module.

    Raises:
        TargetError: If the file cannot be read or its code fails.
    """
    name = _FILE_PREFIX + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None:
        raise TargetError(f"{target}: Python cannot import {file}; give the file another name.")
    module = importlib.util.module_from_spec(spec)
    try:
        source = file.read_bytes()
    except OSError as error:
        raise TargetError(
            f"{target}: {file} cannot be read ({error.strerror}); check its permissions."
        ) from error
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise TargetError(_describe_failed_import(target, str(file), error)) from error
    return module


def import_named(target: str, name: str) -> ModuleType:
    """Import a module by its dotted name.

    Args:
        target: The TARGET, for messages.
        name: The dotted name.

    Returns:
        The module.

    Raises:
        TargetError: If there is no such module or its code fails.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise TargetError(
                f"{target}: there is no module {missing} in {Path.cwd()} or among the installed "
                "packages; check the name, or write path/to/file.py:function."
            ) from error
        raise TargetError(_describe_failed_import(target, name, error)) from error


def describe_error(error: BaseException) -> str:
    """Say in one line what went wrong and in which line of the person's own code.

    Args:
        error: An exception with its traceback.

    Returns:
        Text such as ` at train.py, line 3 (ValueError: too small)`, to follow a verb.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" at {error.filename}, line {error.lineno} ({type(error).__name__}: {error.msg})"
    lines = str(error).strip().splitlines()
    what = type(error).__name__ + (f": {lines[0].rstrip(' .')}" if lines else "")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    # The innermost line outside the libraries, even where a library is what raised.
    return f" at {own[-1].filename}, line {own[-1].lineno} ({what})" if own else f" ({what})"


def _describe_failed_import(target: str, place: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        remedy = f"install {error.name}, or put it beside the file"
    elif isinstance(error, ImportError) and "relative import" in str(error):
        remedy = "write package.module:function for a file that belongs to a package"
    elif isinstance(error, SystemExit):
        remedy = 'put what only a script should do under `if __name__ == "__main__":`'
    else:
        remedy = "mend that line"
    return f"{target}: importing {place} failed{describe_error(error)}; {remedy}."


def _is_library(filename: str) -> bool:
    """Whether a file is Python's own, an installed package's, or ours."""
    installed = {"site-packages", "dist-packages"} & set(Path(filename).parts)
    roots = (sysconfig.get_path("stdlib"), _PACKAGE_FOLDER)
    return bool(installed) or filename.startswith(("<frozen", *(root + os.sep for root in roots)))


def _places(top: str) -> list[str]:
    """Where a loaded module lies: its file, or the files loaded from a package without one."""
    spec = _spec(top)
    if spec is None:
        return []
    if spec.has_location:
        return [spec.origin or ""]
    # A namespace package: its search path follows sys.path, so only what was loaded from it counts.
    loaded = [_spec(name) for name in sys.modules if name.startswith(f"{top}.")]
    files = [each.origin or "" for each in loaded if each is not None and each.has_location]
    folders = list(spec.submodule_search_locations or ())
    return files or [os.path.join(folder, "") for folder in folders[:1]]


def _spec(name: str) -> ModuleSpec | None:
    module = sys.modules.get(name)  # a name may be blocked with None, or hold any odd object
    return module.__spec__ if isinstance(module, ModuleType) else None


def _top(name: str) -> str:
    return name.partition(".")[0]


def _remove(tops: set[str]) -> dict[str, ModuleType]:
    """Take modules with all their submodules out of `sys.modules`."""
    names = [name for name in sys.modules if _top(name) in tops]
    return {name: sys.modules.pop(name) for name in names}
