"""A function of a module, for a while another one: for callers that look it up in the module at each call."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType


class Swap:
    """While any thread is inside `inside()`, `module.name` is `instead` for all threads; after the last one what it was."""

    def __init__(self, module: ModuleType, name: str, instead: Callable):
        self.module, self.name, self.instead = module, name, instead
        self.original: Callable = getattr(module, name)
        self._lock, self._threads = threading.Lock(), 0

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        with self._lock:
            self._threads += 1
            setattr(self.module, self.name, self.instead)
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    setattr(self.module, self.name, self.original)
