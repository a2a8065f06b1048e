"""Detections and tracks in video files, streams and cameras: decode, detect and encode side by side."""

from rapidetr.video.predict import VideoResult, predict_video, track
from rapidetr.video.reader import VideoReader, frames
from rapidetr.video.records import Frame, TrackedFrame

__all__ = ["Frame", "TrackedFrame", "VideoReader", "VideoResult", "frames", "predict_video", "track"]
