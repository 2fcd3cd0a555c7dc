"""The study that ships with the project: soundscapes mixed from real recordings, and the small model's pretraining."""
