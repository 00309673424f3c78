"""Annotated objects with their points, cut out of frames once, to be pasted into others."""
