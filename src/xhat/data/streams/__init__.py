"""Data that stay on disk: streams of rows, their order, and how batches are read ahead."""

from xhat.data.streams.base import Stream
from xhat.data.streams.npy import NpyStream
from xhat.data.streams.shards import Shards

__all__ = ["NpyStream", "Shards", "Stream"]
