"""The raw datasets of the small study that ships with the project: soundscapes mixed from real recordings."""
