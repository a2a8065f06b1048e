"""Predict over folders, Parquet and object stores on Ray Data, resumable; Ray Serve deployment of an HTTP app."""
