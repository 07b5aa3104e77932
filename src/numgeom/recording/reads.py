"""Where does Python read a tensor without a call that a dispatch mode would see?

`tolist`, `numpy`, and what builds tensors from lists of tensors read memory directly. While
somebody listens, these functions of torch are replaced by ones that first report the tensor; the
result is the same. With the last listener the functions are again what they were. (Python stops
caching the methods of a class that has changed a thousand times, from 3.13 on. So where many short
recordings follow each other, the replacements stay after a few, and pass everything on.)
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from numgeom.recording.values import tensors_in

Listener = Callable[[Tensor, str], None]

# Methods of a tensor that hand its values to Python, and functions that read those in arguments.
_METHODS = ("tolist", "numpy", "__dlpack__", "__deepcopy__", "__reduce_ex__")
_BUILDERS = ("tensor", "as_tensor", "asarray")
_LIKE = "new_tensor"  # builds one like a tensor
_BY_POSITIONS = "tensor_split"  # reads its second argument
_MOST_CHANGES = 16

_lock = threading.Lock()
_listeners: dict[int, list[Listener]] = {}  # by thread
_originals: list[tuple[Any, str, Any]] = []  # owner, name, what the owner itself had; None: nothing
_installed = [0]  # how often


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Report tensors that this thread reads inside the block.

    Args:
        listener: Gets the tensor, and the name of what reads it, as in "tolist".
    """
    thread = threading.get_ident()
    with _lock:
        if not _originals:
            _install()
        _listeners.setdefault(thread, []).append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners[thread].remove(listener)
            if not _listeners[thread]:
                del _listeners[thread]
            if not _listeners and _installed[0] < _MOST_CHANGES:
                _uninstall()


@contextmanager
def unheard() -> Iterator[None]:
    """Report nothing that this thread reads inside the block."""
    thread = threading.get_ident()
    with _lock:
        heard = _listeners.get(thread)
        if heard is not None:
            _listeners[thread] = []
    try:
        yield
    finally:
        if heard is not None:
            with _lock:
                _listeners[thread] = heard


def _tell(tensor: Any, name: str) -> None:
    if isinstance(tensor, Tensor):
        for listener in tuple(_listeners.get(threading.get_ident(), ())):
            listener(tensor, name)


def _install() -> None:
    _installed[0] += 1
    for name in _METHODS:
        _replace(Tensor, name, _reading_self(name, getattr(Tensor, name)))
    for name in _BUILDERS:
        _replace(torch, name, _reading_lists(name, getattr(torch, name), at=0))
    _replace(Tensor, _LIKE, _reading_lists(_LIKE, getattr(Tensor, _LIKE), at=1))
    for owner in (torch, Tensor):
        original = getattr(owner, _BY_POSITIONS)
        _replace(owner, _BY_POSITIONS, _reading_positions(original))


def _replace(owner: Any, name: str, new: Any) -> None:
    _originals.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, new)


def _uninstall() -> None:
    while _originals:
        owner, name, own = _originals.pop()
        if own is None:  # it was inherited
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _reading_self(name: str, original: Any) -> Any:
    @functools.wraps(original)
    def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        _tell(self, name)
        return original(self, *args, **kwargs)

    return read


def _reading_lists(name: str, original: Any, *, at: int) -> Any:
    @functools.wraps(original)
    def build(*args: Any, **kwargs: Any) -> Any:
        data = args[at] if len(args) > at else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, (list, tuple)):  # a tensor itself is detached by a call
            for tensor in tensors_in(data):
                _tell(tensor, name)
        return original(*args, **kwargs)

    return build


def _reading_positions(original: Any) -> Any:
    @functools.wraps(original)
    def split(*args: Any, **kwargs: Any) -> Any:
        for argument in (*args[1:], *kwargs.values()):
            _tell(argument, _BY_POSITIONS)
        return original(*args, **kwargs)

    return split
