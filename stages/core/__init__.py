"""The numerical core: plain values and arrays in and out, no files, no frames, no global state."""
