"""Search in folders of recordings: an index of windows that follows the folder, and the moments found in it."""
