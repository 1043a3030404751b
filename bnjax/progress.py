"""Progress of long work: a bar on a terminal and in a notebook, lines in a log."""

import sys
import warnings
from typing import Any, TextIO

from bnjax.extras import extra

LINE_S = 30.0
"""Seconds between two lines where there is no terminal."""

_BAR_S = 0.5
_LINE = (
    "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
)


class ProgressBar:
    """A bar on standard error: how much is done, how fast, and how long the rest takes.

    A widget in a notebook that has ipywidgets, a bar on a terminal, elsewhere a line every `LINE_S`
    seconds. When standard error ends, the bar falls silent, and the work goes on.
    """

    def __init__(
        self,
        total: int,
        *,
        description: str,
        unit: str,
        initial: int = 0,
        compiles: bool = False,
        shown: bool = True,
    ) -> None:
        """Shows the bar at `initial`.

        Args:
            total: amount of work.
            description: name of the work.
            unit: unit of `total`.
            initial: amount that was done before.
            compiles: the first update comes after a compilation; until then the bar says so, and
                rate and time left, which are means, are of what comes after it.
            shown: False for no bar.
        """
        with extra("train"), warnings.catch_warnings():  # without ipywidgets text will do
            warnings.filterwarnings("ignore", message="IProgress not found")
            from tqdm.auto import tqdm
            from tqdm.std import tqdm as text_bar

        stream = sys.stderr
        lines = tqdm.status_printer is text_bar.status_printer and not (
            stream is not None and stream.isatty()
        )
        how: dict[str, Any] = (
            {"bar_format": _LINE, "mininterval": LINE_S, "miniters": 1}
            if lines
            else {"dynamic_ncols": True, "mininterval": _BAR_S}
        )
        self._description = description
        self._compiles = compiles
        self._postfix, self._images = "", 0.0
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=f"{description}, compiling" if compiles else description,
            unit=unit,
            unit_scale=True,
            smoothing=0,
            file=_Output(stream, lines=lines),
            disable=not shown,
            **how,
        )

    def update(
        self, count: int, postfix: str = "", *, compiled_s: float = 0, images: float = 0
    ) -> None:
        """Adds the amount that was done since the last time, and shows `postfix`.

        Args:
            count: the amount.
            postfix: what is said behind the rate.
            compiled_s: seconds that went into a compilation and this amount; they do not count
                for the rate, and neither does the amount.
            images: in a unit; if there are any, their rate is said, too.
        """
        bar = self._bar
        self._postfix, self._images = postfix, images
        if self._compiles:
            # tqdm counts the rate from here: the clock is reset, what is done counts as given.
            self._compiles = False
            bar.set_postfix_str(postfix, refresh=False)
            bar.n += count
            bar.initial = bar.last_print_n = bar.n
            bar.unpause()
            bar.set_description_str(self._description)
            return
        if compiled_s:
            if not bar.disable:
                bar.initial += count
            self.leave_out(compiled_s)
        self._set_postfix(count)
        bar.update(count)

    def leave_out(self, seconds: float) -> None:
        """Takes seconds that are just over, those of a compilation, out of the rate."""
        if not self._bar.disable:
            self._bar.start_t += seconds
            self._bar.last_print_t += seconds  # or tqdm takes the bar for one never shown

    def _set_postfix(self, count: int = 0) -> None:
        """Shows the rate of images, too, over the time of the bar's own rate."""
        bar = self._bar
        if bar.disable:
            return
        images = self._images * (bar.n + count - bar.initial)
        seconds = bar.format_dict["elapsed"]
        rate = f", {images / seconds:,.0f} images/s" if images and seconds else ""
        bar.set_postfix_str(self._postfix + rate, refresh=False)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._set_postfix()
        self._bar.close()


class _Output:
    """A stream as tqdm needs it, which may be closed or end at any time.

    Attributes:
        encoding: encoding of the stream; tqdm draws by it.
        fileno: that of the stream; by it tqdm finds the terminal's width.
    """

    def __init__(self, stream: TextIO | None, *, lines: bool) -> None:
        self._stream = stream
        self._lines = lines
        self.encoding = getattr(stream, "encoding", None)
        self.fileno = getattr(stream, "fileno", None)

    def write(self, text: str) -> None:
        """Writes the text as it is, or, in a log, as a line without control characters."""
        if self._lines:
            text = text.strip()
            text += "\n" if text else ""
        if self._stream is None or not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a pipe whose reader has ended, a full disk, a closed file
            self._stream = None

    def flush(self) -> None:
        """Does nothing: `write` has flushed."""
