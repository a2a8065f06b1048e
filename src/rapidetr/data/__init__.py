"""Folders of annotated pictures become records; the doctor says what is wrong with them."""

from rapidetr.data.doctor import Finding, Report, examine
from rapidetr.data.read import find_splits, read_dataset
from rapidetr.data.records import Dataset, ImageRecord, Problem
from rapidetr.data.write import write_coco

__all__ = ["Dataset", "Finding", "ImageRecord", "Problem", "Report", "examine", "find_splits", "read_dataset", "write_coco"]
