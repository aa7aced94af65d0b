"""The next step's questions are decoded and encoded in a thread while this step trains: pictures cost CPU time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Ahead:
    """`make(step)` for one step after the other: `ahead(step)` returns it, `begin(step)` starts it in the background.

    What `make` raises is raised by `ahead(step)`, as if it had just been called; what nobody asks for is not raised.
    Steps from `end` on are not begun.
    """

    def __init__(self, make: Callable, end: int):
        self.make, self.end, self.started = make, end, {}
        self.thread = ThreadPoolExecutor(1, "ahead")

    def begin(self, step: int) -> None:
        """Start on this step, if it is before the end."""
        if step < self.end:
            self.started[step] = self.thread.submit(self.make, step)

    def __call__(self, step: int):
        """What `make` makes of this step: from the thread, or now."""
        made = self.started.pop(step, None)
        return made.result() if made else self.make(step)
