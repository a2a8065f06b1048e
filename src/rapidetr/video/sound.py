"""The sound of a file, copied as it is."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from rapidetr.video.reader import VideoReader


class Sound:
    """Copies packets of sound into `output`, as far as the pictures have come; a second look into the file, nothing is decoded."""

    def __init__(self, reader: VideoReader, output: Any) -> None:
        self._begin, self._output = reader.begin, output
        self._input = reader.open_again()
        stream = self._input.streams.audio[0]
        self._packets = self._moved(stream, output.add_stream_from_template(stream))
        self._next = next(self._packets, None)

    def copy(self, until: Fraction) -> None:
        """Everything up to this time, in seconds since the first frame."""
        while self._next is not None and self._next.pts * self._next.time_base <= until:
            self._output.mux(self._next)
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._input.close()

    def _moved(self, stream: Any, copy: Any) -> Iterator[Any]:
        """Packets from the first frame on, at times that count from there."""
        for packet in self._input.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            begin = round(self._begin / packet.time_base)
            if packet.pts >= begin:
                packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, copy
                yield packet


def why_no_sound(reader: VideoReader, output: Any) -> str | None:
    """Why the sound of a source cannot be copied; None where it can, or there is none."""
    if reader.sound is None:
        return None
    if reader.source.network or reader.source.live:
        return "sound is left out: it is copied from files only"
    if reader.sound not in output.supported_codecs:
        return f"sound is left out: {output.format.name} does not hold {reader.sound}; write a .mkv to keep it"
    return None
