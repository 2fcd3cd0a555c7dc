"""The study that ships with the project: soundscapes mixed from real recordings, an example and not the product."""
